_base_ = [
    "../_base_/models/fast_scnn.py",
    "../_base_/cityscapes_512x1024.py",
    "../_base_/schedules/segmentation_160k.py",
]

train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=0.12, weight_decay=4e-5))
