_base_ = "mobilefacenet_8xb64_casia-112x112.py"

model = dict(backbone=dict(conv_cfg=dict(type="drconv_mm.DRConv")))
