model = dict(
    type="ImageClassifier",
    backbone=dict(type="ShuffleNetV2", widen_factor=0.5),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", in_channels=1024),
)
