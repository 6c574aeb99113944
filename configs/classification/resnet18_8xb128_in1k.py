_base_ = ["../_base_/models/resnet18.py", "../_base_/imagenet_8xb128.py"]
