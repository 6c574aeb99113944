_base_ = "./retinanet_r18_fpn_sample-160x120.py"

model = dict(backbone=dict(conv_cfg=dict(type="drconv_mm.DRConv")))
