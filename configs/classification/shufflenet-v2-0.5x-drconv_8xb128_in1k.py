_base_ = "shufflenet-v2-0.5x_8xb128_in1k.py"

model = dict(backbone=dict(conv_cfg=dict(type="drconv_mm.DRConv")))
