# Faces of 112x112 in folders, few enough for two CPU cores:
# <data_root>/train/<person>/*.jpg, <data_root>/verify/<another person>/*.jpg, and <data_root>/pairs.txt of the latter
default_scope = "mmengine"
data_root = "data/lfw_mini"
max_epochs = 16

train_pipeline = [
    dict(type="drconv_mm.LoadFace"),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    dict(type="drconv_mm.RandomShift", pixels=4),
    dict(type="drconv_mm.RandomBrightnessContrast", brightness=0.2, contrast=0.2),
    dict(type="drconv_mm.PackFace"),
]
test_pipeline = [dict(type="drconv_mm.LoadFace"), dict(type="drconv_mm.PackFace")]
train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(type="drconv_mm.FaceFolder", data_root=data_root, data_prefix="train", pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(type="drconv_mm.FacePairs", data_root=data_root, data_prefix="verify", pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="drconv_mm.FaceVerification", pixel_baseline=True)
test_evaluator = val_evaluator

optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=5e-4))
# Relative to each parameter's own rate, which OneCycleLR would overwrite; the cosine ends with max_epochs.
param_scheduler = [
    dict(type="LinearLR", start_factor=0.04, begin=0, end=5, by_epoch=True, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict()
test_cfg = dict()

default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=10),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=1),
    sampler_seed=dict(type="DistSamplerSeedHook"),
)
custom_hooks = [
    dict(type="drconv_mm.CheckClassesHook"),
    dict(type="drconv_mm.MarginWarmupHook", end=5),
]
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="gloo"),
)
log_level = "INFO"
load_from = None
resume = False
randomness = dict(seed=0)
