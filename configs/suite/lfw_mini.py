# Faces alone, at full width: 234 iterations of 32 images, Conv2d and DRConv, three seeds.
_base_ = "mini.py"

title = "DRConv against Conv2d on a part of Labeled Faces in the Wild"
tasks = dict(
    _delete_=True,
    face=dict(
        title="Face verification: MobileFaceNet with ArcFace, a part of Labeled Faces in the Wild at 64x64",
        config={{_base_.tasks.face.config}},
        epochs=6,
        evaluations=3,
        metric={{_base_.tasks.face.metric}},
        baselines={{_base_.tasks.face.baselines}},
        key={{_base_.tasks.face.key}},
        input_shape={{_base_.tasks.face.input_shape}},
        data={{_base_.tasks.face.data}},
    ),
)
convs = {"_delete_": True, "Conv2d": None, "DRConv": dict(type="drconv_mm.DRConv")}
