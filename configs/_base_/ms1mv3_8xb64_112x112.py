# MS1MV3 as insightface distributes it: data/ms1m-retinaface-t1/{train.rec,train.idx,lfw.bin,cfp_fp.bin,agedb_30.bin}.
# 8 GPUs with 64 images each, 420,000 iterations, the rate divided by 10 at 252k, 364k and 406k.
default_scope = "mmengine"
data_root = "data/ms1m-retinaface-t1"
max_iters = 420_000

train_pipeline = [
    dict(type="drconv_mm.LoadFace"),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    dict(type="drconv_mm.PackFace"),
]
test_pipeline = [dict(type="drconv_mm.LoadFace"), dict(type="drconv_mm.PackFace")]
train_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(type="drconv_mm.FaceRecords", data_root=data_root, pipeline=train_pipeline, corrupt="skip"),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(type="drconv_mm.FaceBin", data_root=data_root, ann_file="lfw.bin", pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="drconv_mm.FaceVerification", pixel_baseline=False)
test_evaluator = val_evaluator

optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=5e-4))
param_scheduler = [
    dict(type="MultiStepLR", milestones=[252_000, 364_000, 406_000], gamma=0.1, by_epoch=False, end=max_iters)
]
train_cfg = dict(by_epoch=False, max_iters=max_iters, val_interval=10_000)
# The same for each of these in turn.
verification_sets = ["lfw.bin", "cfp_fp.bin", "agedb_30.bin"]
val_cfg = dict(type="drconv_mm.VerificationValLoop", ann_files=verification_sets)
test_cfg = dict(type="drconv_mm.VerificationTestLoop", ann_files=verification_sets)
auto_scale_lr = dict(enable=False, base_batch_size=512)  # mmdet's train.py asks for both

default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=100, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="drconv_mm.ShardedCheckpointHook", by_epoch=False, interval=10_000, max_keep_ckpts=2),
    sampler_seed=dict(type="DistSamplerSeedHook"),
)
custom_hooks = [dict(type="drconv_mm.CheckClassesHook")]
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
log_processor = dict(by_epoch=False)
log_level = "INFO"
load_from = None
resume = False
randomness = dict(seed=0)
