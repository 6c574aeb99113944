# 8 GPUs x 2 images, lr 0.01, 12 epochs: mmdet's own config as it stands.
_base_ = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"
