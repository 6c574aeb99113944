# One task of seconds, on generated data.
title = "Tiny"
seeds = 1
tasks = dict(
    shapes=dict(
        title="Classification of shapes",
        config="tiny_classifier.py",
        epochs=4,
        evaluations=2,
        metric=dict(name="accuracy/top1", label="top-1 accuracy", unit="%"),
        key="model.backbone.conv_cfg",
        input_shape=(32, 32),
        widen=dict(key="model.backbone.widen_factor", follow={"model.head.in_channels": 0}),
        data=dict(
            folder="tiny",
            generate="drconv_mm.datasets.sample_classification:generate_sample_classification",
            arguments=dict(num_train=4, num_val=2, size=32),
        ),
        options={
            "default_hooks.logger.interval": 1,
            "default_hooks.killer.type": "tests.test_suite.killer.KillHook",
        },
    )
)
convs = {"Conv2d": None, "DRConv": dict(type="drconv_mm.DRConv")}
