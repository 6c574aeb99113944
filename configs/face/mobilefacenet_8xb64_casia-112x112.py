_base_ = ["../_base_/models/mobilefacenet_arcface.py", "../_base_/casia_8xb64_112x112.py"]

model = dict(head=dict(num_classes=10572))
