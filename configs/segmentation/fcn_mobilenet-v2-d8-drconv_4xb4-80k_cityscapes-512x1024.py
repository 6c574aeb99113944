_base_ = "./fcn_mobilenet-v2-d8_4xb4-80k_cityscapes-512x1024.py"

model = dict(backbone=dict(conv_cfg=dict(type="drconv_mm.DRConv")))
