# Generated scenes: python -m drconv_mm.datasets.sample_segmentation data/sample_segmentation
_base_ = ["../_base_/models/fcn_mobilenet-v2-d8.py", "../_base_/camvid_240x180.py"]

norm_cfg = dict(type="BN", requires_grad=True)
# Half as wide, with light heads. Three quarters of the pixels are background: cross-entropy would learn little else,
# and Lovasz's loss weighs the classes alike. (mmseg 1.2's class weights don't bear void pixels.)
loss = dict(_delete_=True, type="LovaszLoss", reduction="none")
head = dict(norm_cfg=norm_cfg, num_classes=5, dropout_ratio=0.0, loss_decode=loss)
model = dict(
    data_preprocessor=dict(size=(120, 160)),
    backbone=dict(widen_factor=0.5, norm_cfg=norm_cfg, init_cfg=None),
    decode_head=dict(**head, in_channels=160, channels=128),
    auxiliary_head=dict(**head, in_channels=48, channels=64),
)

data_root = "data/sample_segmentation"
metainfo = dict(
    classes=("background", "stripes_above", "stripes_below", "stripes_core", "stripes_rim"),
    palette=[(190, 190, 190), (230, 85, 13), (49, 130, 189), (49, 163, 84), (117, 107, 177)],
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
test_pipeline = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")]
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        type="BaseSegDataset",
        data_root=data_root,
        data_prefix=dict(img_path="img_dir/train", seg_map_path="ann_dir/train"),
        img_suffix=".png",
        metainfo=metainfo,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root=data_root,
        data_prefix=dict(img_path="img_dir/val", seg_map_path="ann_dir/val"),
        img_suffix=".png",
        metainfo=metainfo,
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader

max_iters = 76
optim_wrapper = dict(optimizer=dict(lr=1e-2))
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=1e-5, by_epoch=False, begin=0, end=max_iters)]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
