_base_ = ["../_base_/models/mobilenet-v1.py", "../_base_/caltech20_96x96.py"]

model = dict(head=dict(num_classes=20))
