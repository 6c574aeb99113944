# 62 people of Labeled Faces in the Wild to train on, 1,600 pairs of 80 others to verify: 16 epochs are 320 iterations.
_base_ = ["../_base_/models/mobilefacenet_arcface.py", "../_base_/face_folders_112x112.py"]

model = dict(head=dict(num_classes=62, scale=32.0, margins=(1.0, 0.3, 0.0)))
