_base_ = "./retinanet_r18-0.5x_fpn_bccd-160x120.py"

model = dict(backbone=dict(conv_cfg=dict(type="drconv_mm.DRConv")))
