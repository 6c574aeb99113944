_base_ = ["../_base_/models/shufflenet-v2-0.5x.py", "../_base_/imagenet_8xb128.py"]
