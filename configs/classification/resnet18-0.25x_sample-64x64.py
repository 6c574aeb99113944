_base_ = ["../_base_/models/resnet18.py", "../_base_/sample_classification_64x64.py"]

# A quarter as wide, so that the network is small enough to share, and a minute of training on two CPU cores.
max_epochs = 12

model = dict(backbone=dict(stem_channels=16, base_channels=16), head=dict(num_classes=4, in_channels=128))
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.02, by_epoch=False, begin=0, end=20),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=True, begin=0, end=max_epochs, convert_to_iter_based=True),
]
default_hooks = dict(checkpoint=dict(interval=max_epochs))
