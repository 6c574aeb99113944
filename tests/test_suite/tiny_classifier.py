# The smallest training that a suite can run: 16 images of 32x32, ShuffleNetV2 0.5x.
_base_ = "../../configs/classification/shufflenet-v2-0.5x_sample-64x64.py"

train_dataloader = dict(
    batch_size=8,
    dataset=dict(
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="RandomResizedCrop", scale=32),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PackInputs"),
        ]
    ),
)
val_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="ResizeEdge", scale=32, edge="short"),
            dict(type="PackInputs"),
        ]
    )
)
test_dataloader = val_dataloader
