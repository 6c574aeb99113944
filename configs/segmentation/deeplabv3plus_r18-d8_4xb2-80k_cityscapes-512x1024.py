_base_ = [
    "../_base_/models/deeplabv3plus_r18-d8.py",
    "../_base_/cityscapes_512x1024.py",
    "../_base_/schedules/segmentation_80k.py",
]
