_base_ = "./fcn_mobilenet-v2-d8_camvid-240x180.py"

model = dict(backbone=dict(conv_cfg=dict(type="drconv_mm.DRConv")))
