# mini's tasks on COCO, Cityscapes, MS1MV3 and ImageNet, at the budgets of their configs, for machines with GPUs.
_base_ = "mini.py"

title = "DRConv against Conv2d on COCO, Cityscapes, MS1MV3 and ImageNet"
# Workers load the data, so a resumed training goes on with other augmentation.
exact_resume = False

# Detection and segmentation start from ImageNet weights, which a widened network has none of; and no width of
# MobileNetV2 comes within 3% of DRConv's multiply-adds at 224x224.
tasks = dict(
    detection=dict(
        title="Object detection: RetinaNet with MobileNetV2, COCO, 1x schedule",
        config="detection/retinanet_mobilenet-v2_fpn_1x_coco.py",
        epochs=None,
        leave_out=["Conv2d-widened"],
        evaluations=12,
        input_shape=(800, 1344),
        data=dict(
            folder="coco",
            files=[
                "annotations/instances_train2017.json",
                "annotations/instances_val2017.json",
                "train2017",
                "val2017",
            ],
            source="https://cocodataset.org/#download: 2017 train and val images, train/val annotations",
        ),
    ),
    segmentation=dict(
        title="Semantic segmentation: FCN with MobileNetV2, Cityscapes, 80k iterations",
        config="segmentation/fcn_mobilenet-v2-d8_4xb4-80k_cityscapes-512x1024.py",
        iterations=None,
        options=dict(_delete_=True),
        leave_out=["Conv2d-widened"],
        evaluations=10,
        input_shape=(512, 1024),
        data=dict(
            folder="cityscapes",
            source="https://www.cityscapes-dataset.com/downloads: leftImg8bit and gtFine, with *_labelTrainIds.png",
        ),
    ),
    face=dict(
        title="Face verification: MobileFaceNet with ArcFace, MS1MV3",
        config="face/mobilefacenet_8xb64_ms1mv3-112x112.py",
        epochs=None,
        options=dict(_delete_=True),
        evaluations=42,
        input_shape=(112, 112),
        metric=dict(name="lfw/accuracy", label="verification accuracy on LFW", unit="%"),
        baselines=dict(_delete_=True),
        data=dict(
            folder="ms1m-retinaface-t1",
            files=["train.rec", "train.idx", "lfw.bin", "cfp_fp.bin", "agedb_30.bin"],
            source="MS1M-RetinaFace (MS1MV3): https://github.com/deepinsight/insightface/tree/master/recognition/_datasets_",
        ),
    ),
    classification=dict(
        title="Classification: MobileNetV2, ImageNet-1k",
        config="classification/mobilenet-v2_8xb128_in1k.py",
        epochs=None,
        leave_out=["Conv2d-widened"],
        options=dict(_delete_=True),
        evaluations=24,
        input_shape=(224, 224),
        data=dict(
            folder="imagenet",
            source="https://www.image-net.org/download.php: {train,val}/<wnid>/*.JPEG",
        ),
    ),
)
