# Generated data, four tasks, two conv types, one seed: no download, about ten minutes on two CPU cores.
title = "DRConv against Conv2d on generated data"
seeds = 1

tasks = dict(
    detection=dict(
        title="Object detection: RetinaNet with ResNet-18, half as wide, generated scenes of 160x120",
        config="detection/retinanet_r18_fpn_sample-160x120.py",
        evaluations=3,
        metric=dict(name="coco/bbox_mAP", label="AP"),
        key="model.backbone.conv_cfg",
        input_shape=(128, 160),
        data=dict(
            folder="sample_detection",
            generate="drconv_mm.datasets.sample_detection:generate_sample_detection",
        ),
    ),
    segmentation=dict(
        title="Semantic segmentation: FCN with MobileNetV2, half as wide, generated scenes of 160x120",
        config="segmentation/fcn_mobilenet-v2-d8_sample-160x120.py",
        evaluations=2,
        metric=dict(name="mIoU", label="mIoU", unit="%"),
        key="model.backbone.conv_cfg",
        input_shape=(120, 160),
        data=dict(
            folder="sample_segmentation",
            generate="drconv_mm.datasets.sample_segmentation:generate_sample_segmentation",
        ),
    ),
    face=dict(
        title="Face verification: MobileFaceNet, a quarter as wide, with ArcFace, generated faces at 64x64",
        config="face/mobilefacenet_sample-64x64.py",
        evaluations=2,
        metric=dict(name="face/accuracy", label="verification accuracy", unit="%"),
        baselines={"raw pixels": "face/pixels/accuracy"},
        key="model.backbone.conv_cfg",
        input_shape=(64, 64),
        data=dict(folder="sample_faces", generate="drconv_mm.datasets.sample_faces:generate_sample_faces"),
    ),
    classification=dict(
        title="Classification: ResNet-18 a quarter as wide, generated objects of 64x64",
        config="classification/resnet18-0.25x_sample-64x64.py",
        evaluations=2,
        metric=dict(name="accuracy/top1", label="top-1 accuracy", unit="%"),
        key="model.backbone.conv_cfg",
        input_shape=(64, 64),
        data=dict(
            folder="sample_classification",
            generate="drconv_mm.datasets.sample_classification:generate_sample_classification",
        ),
    ),
)

convs = {
    "Conv2d": None,
    "DRConv": dict(type="drconv_mm.DRConv"),
}
