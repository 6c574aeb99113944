_base_ = "./faster-rcnn_mobilenet-v2_fpn_1x_coco.py"

model = dict(backbone=dict(conv_cfg=dict(type="drconv_mm.DRConv")))
