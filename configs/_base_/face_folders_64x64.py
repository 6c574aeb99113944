# The faces at 64x64: a third of the work of 112x112 an image. A config sets `model.backbone.input_size` with it.
_base_ = "face_folders_112x112.py"

resize = dict(type="Resize", scale=(64, 64))
train_pipeline = [
    dict(type="drconv_mm.LoadFace"),
    resize,
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    dict(type="drconv_mm.RandomShift", pixels=2),
    dict(type="drconv_mm.RandomBrightnessContrast", brightness=0.2, contrast=0.2),
    dict(type="drconv_mm.PackFace"),
]
test_pipeline = [dict(type="drconv_mm.LoadFace"), resize, dict(type="drconv_mm.PackFace")]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
