_base_ = [
    "../_base_/models/fcn_unet-s5-d16.py",
    "../_base_/cityscapes_512x1024.py",
    "../_base_/schedules/segmentation_160k.py",
]

train_dataloader = dict(batch_size=4)
