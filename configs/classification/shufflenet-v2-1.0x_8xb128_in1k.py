_base_ = ["../_base_/models/shufflenet-v2-1.0x.py", "../_base_/imagenet_8xb128.py"]
