_base_ = "./fcn_unet-s5-d16_4xb4-160k_cityscapes-512x1024.py"

model = dict(backbone=dict(conv_cfg=dict(type="drconv_mm.DRConv")))
