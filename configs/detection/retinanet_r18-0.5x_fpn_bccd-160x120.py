_base_ = "./retinanet_r18_fpn_bccd-160x120.py"

# Half as wide, so that the network is small enough to share.
model = dict(backbone=dict(base_channels=32), neck=dict(in_channels=[32, 64, 128, 256]))
