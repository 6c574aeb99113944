model = dict(
    type="drconv_mm.FaceRecognizer",
    backbone=dict(type="drconv_mm.IResNet", depth=50),
    neck=dict(type="drconv_mm.LinearEmbedding", in_channels=512, embedding_size=512, map_size=7),
    head=dict(type="drconv_mm.ArcFaceHead", num_classes=93431, in_channels=512, scale=64.0, margins=(1.0, 0.5, 0.0)),
)
