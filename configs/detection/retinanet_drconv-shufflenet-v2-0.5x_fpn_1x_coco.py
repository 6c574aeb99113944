# The authors' structure: one guide a block, shared by both of its pointwise convolutions.
_base_ = "./retinanet_shufflenet-v2-0.5x_fpn_1x_coco.py"

model = dict(backbone=dict(arrangement="both"))
