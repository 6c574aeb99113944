# Every other class of caltech20, to pretrain on.
_base_ = "shufflenet-v2-0.5x_caltech20-96x96.py"

metainfo = dict(
    classes=(
        "Motorbikes",
        "bonsai",
        "butterfly",
        "ewer",
        "hawksbill",
        "kangaroo",
        "laptop",
        "revolver",
        "starfish",
        "trilobite",
    )
)
model = dict(head=dict(num_classes=10))
data_preprocessor = dict(num_classes=10)
train_dataloader = dict(dataset=dict(metainfo=metainfo))
val_dataloader = dict(dataset=dict(metainfo=metainfo))
test_dataloader = val_dataloader
