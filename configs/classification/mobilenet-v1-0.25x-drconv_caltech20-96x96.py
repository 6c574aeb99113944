_base_ = "mobilenet-v1-0.25x_caltech20-96x96.py"

model = dict(backbone=dict(conv_cfg=dict(type="drconv_mm.DRConv")))
