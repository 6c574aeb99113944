# The authors' structure: one guide a block, shared by its pointwise DRConvs. `arrangement` says which those are.
model = dict(
    type="ImageClassifier",
    backbone=dict(type="drconv_mm.DRConvShuffleNetV2", widen_factor=0.5, arrangement="both"),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead",
        num_classes=1000,
        in_channels=1024,
        loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1, mode="original", loss_weight=1.0),
        topk=(1, 5),
    ),
)
