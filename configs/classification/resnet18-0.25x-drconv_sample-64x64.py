_base_ = "resnet18-0.25x_sample-64x64.py"

model = dict(backbone=dict(conv_cfg=dict(type="drconv_mm.DRConv")))
