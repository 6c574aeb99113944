_base_ = "shufflenet-v2-0.5x_sample-64x64.py"

model = dict(backbone=dict(conv_cfg=dict(type="drconv_mm.DRConv")))
