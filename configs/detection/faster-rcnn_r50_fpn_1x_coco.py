# 8 GPUs x 2 images, lr 0.02, 12 epochs: mmdet's own config as it stands.
_base_ = "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"
