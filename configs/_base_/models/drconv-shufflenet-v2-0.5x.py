# The authors' structure: one guide a block, shared by its two pointwise DRConvs.
model = dict(
    type="ImageClassifier",
    backbone=dict(type="drconv_mm.DRConvShuffleNetV2", widen_factor=0.5, arrangement="both"),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", in_channels=1024),
)
