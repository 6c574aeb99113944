# Drawn faces: python -m drconv_mm.datasets.sample_faces data/sample_faces
_base_ = ["../_base_/models/mobilefacenet_arcface.py", "../_base_/face_folders_64x64.py"]

data_root = "data/sample_faces"
max_epochs = 6
# A quarter as wide, and a third of the work of 112x112 an image: small enough to share, and a minute on two CPU cores.
model = dict(
    backbone=dict(widen_factor=0.25, input_size=64),
    neck=dict(in_channels=128),
    head=dict(num_classes=40, scale=32.0, margins=(1.0, 0.3, 0.0)),
)
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader

param_scheduler = [
    dict(type="LinearLR", start_factor=0.04, begin=0, end=2, by_epoch=True, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
custom_hooks = [
    dict(type="drconv_mm.CheckClassesHook"),
    dict(type="drconv_mm.MarginWarmupHook", end=2),
]
