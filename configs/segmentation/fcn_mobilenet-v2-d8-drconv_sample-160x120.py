_base_ = "./fcn_mobilenet-v2-d8_sample-160x120.py"

model = dict(backbone=dict(conv_cfg=dict(type="drconv_mm.DRConv")))
