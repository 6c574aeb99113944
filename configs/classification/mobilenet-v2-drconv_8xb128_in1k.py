_base_ = "mobilenet-v2_8xb128_in1k.py"

model = dict(backbone=dict(conv_cfg=dict(type="drconv_mm.DRConv")))
