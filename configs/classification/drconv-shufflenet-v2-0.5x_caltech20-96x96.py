_base_ = ["../_base_/models/drconv-shufflenet-v2-0.5x.py", "../_base_/caltech20_96x96.py"]

model = dict(head=dict(num_classes=20))
