_base_ = "./fast_scnn_camvid-240x180.py"

model = dict(backbone=dict(conv_cfg=dict(type="drconv_mm.DRConv")))
