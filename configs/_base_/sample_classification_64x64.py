# Generated objects: python -m drconv_mm.datasets.sample_classification data/sample_classification
_base_ = "caltech20_96x96.py"

data_root = "data/sample_classification"
data_preprocessor = dict(num_classes=4)

# A crop that leaves a part out, or an image upside down, would be of another class.
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomResizedCrop", scale=64, crop_ratio_range=(0.8, 1.0)),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    dict(type="PackInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="ResizeEdge", scale=64, edge="short"),
    dict(type="PackInputs"),
]
train_dataloader = dict(dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader
