_base_ = "./fast_scnn_8xb4-160k_cityscapes-512x1024.py"

model = dict(backbone=dict(conv_cfg=dict(type="drconv_mm.DRConv")))
