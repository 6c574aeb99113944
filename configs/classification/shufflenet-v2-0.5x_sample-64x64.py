_base_ = ["../_base_/models/shufflenet-v2-0.5x.py", "../_base_/sample_classification_64x64.py"]

model = dict(head=dict(num_classes=4))
