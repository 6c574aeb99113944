_base_ = ["../_base_/models/mobilenet-v2.py", "../_base_/imagenet_8xb128.py"]
