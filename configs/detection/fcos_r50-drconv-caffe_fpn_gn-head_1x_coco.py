_base_ = "./fcos_r50-caffe_fpn_gn-head_1x_coco.py"

model = dict(backbone=dict(conv_cfg=dict(type="drconv_mm.DRConv")))
