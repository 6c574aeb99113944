# CASIA-WebFace as insightface distributes it: data/faces_webface_112x112/, with the same files as MS1MV3. The schedule
# is that of ArcFace (Deng et al., CVPR 2019, section 3.1): 32,000 iterations of 512 images, decay at 20k and 28k.
_base_ = "ms1mv3_8xb64_112x112.py"

data_root = "data/faces_webface_112x112"
max_iters = 32_000

train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
param_scheduler = [dict(type="MultiStepLR", milestones=[20_000, 28_000], gamma=0.1, by_epoch=False, end=max_iters)]
train_cfg = dict(max_iters=max_iters, val_interval=2_000)
default_hooks = dict(checkpoint=dict(interval=2_000))
