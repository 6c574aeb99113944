# The classes that caltech20a leaves out, to fine-tune on.
_base_ = "shufflenet-v2-0.5x_caltech20-96x96.py"

metainfo = dict(
    classes=(
        "airplanes",
        "buddha",
        "chandelier",
        "grand_piano",
        "helicopter",
        "ketch",
        "menorah",
        "scorpion",
        "sunflower",
        "watch",
    )
)
model = dict(head=dict(num_classes=10))
data_preprocessor = dict(num_classes=10)
train_dataloader = dict(dataset=dict(metainfo=metainfo))
val_dataloader = dict(dataset=dict(metainfo=metainfo))
test_dataloader = val_dataloader
