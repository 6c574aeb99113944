_base_ = [
    "../_base_/models/fcn_mobilenet-v2-d8.py",
    "../_base_/cityscapes_512x1024.py",
    "../_base_/schedules/segmentation_80k.py",
]

train_dataloader = dict(batch_size=4)
