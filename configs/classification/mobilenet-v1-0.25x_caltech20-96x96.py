_base_ = "mobilenet-v1_caltech20-96x96.py"

# A quarter as wide, so that the network is small enough to share; as many iterations as docs/learning.md's networks.
max_epochs = 75

model = dict(backbone=dict(widen_factor=0.25), head=dict(in_channels=256))
train_cfg = dict(max_epochs=max_epochs, val_interval=15)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.02, by_epoch=False, begin=0, end=50),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=True, begin=0, end=max_epochs, convert_to_iter_based=True),
]
