_base_ = ["../_base_/models/fast_scnn.py", "../_base_/camvid_240x180.py"]

# The running statistics must follow within 200 iterations: the usual momentum, not the model's 0.01.
norm_cfg = dict(type="BN", requires_grad=True, momentum=0.1)
model = dict(
    data_preprocessor=dict(size=(180, 240)),
    backbone=dict(norm_cfg=norm_cfg),
    decode_head=dict(norm_cfg=norm_cfg),
    # A list is replaced as a whole.
    auxiliary_head=[
        dict(
            type="FCNHead",
            in_channels=in_channels,
            in_index=in_index,
            channels=32,
            num_convs=1,
            concat_input=False,
            num_classes=19,
            norm_cfg=norm_cfg,
            align_corners=False,
            loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=0.4),
        )
        for in_channels, in_index in ((128, -2), (64, -3))
    ],
)
