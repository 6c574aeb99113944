model = dict(
    type="ImageClassifier",
    backbone=dict(type="ShuffleNetV2", widen_factor=1.0),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", in_channels=1024),
)
