_base_ = ["../_base_/models/shufflenet-v2-1.0x.py", "../_base_/caltech20_96x96.py"]

model = dict(head=dict(num_classes=20))
