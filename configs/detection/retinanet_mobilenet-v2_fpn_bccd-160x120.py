# Blood cells with MobileNetV2, from scratch: one process x 8 images, AdamW at lr 1e-3, 15 epochs.
_base_ = "./retinanet_r18_fpn_bccd-160x120.py"

model = dict(
    backbone=dict(_delete_=True, type="MobileNetV2", out_indices=(1, 2, 4, 7)),
    neck=dict(in_channels=[24, 32, 96, 1280]),
)
