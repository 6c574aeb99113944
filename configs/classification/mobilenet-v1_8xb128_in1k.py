_base_ = ["../_base_/models/mobilenet-v1.py", "../_base_/imagenet_8xb128.py"]
