# 8 GPUs x 2 images, lr 0.01, 12 epochs. From scratch: README.md says how to start from an ImageNet checkpoint.
_base_ = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="drconv_mm.DRConvShuffleNetV2",
        widen_factor=0.5,
        arrangement="none",
        out_indices=(0, 1, 3),
    ),
    # The first output of this backbone is at stride 8 already.
    neck=dict(in_channels=[48, 96, 1024], start_level=0),
)
