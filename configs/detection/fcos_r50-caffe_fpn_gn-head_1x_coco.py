# 8 GPUs x 2 images, lr 0.01, 12 epochs: mmdet's own config as it stands.
_base_ = "mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py"
