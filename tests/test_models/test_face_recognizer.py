from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint, save_checkpoint
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import default_collate

from drconv_mm.models.face import FaceDataPreprocessor, FaceRecognizer, IResNet, LinearEmbedding, MobileFaceNet

FACE = "drconv_mm.models.face"
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}


@MODELS.register_module(force=True)
class PlainSoftmaxHead(BaseModule):
    """A head as FaceRecognizer expects it, the simplest there is."""

    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.in_channels = in_channels
        self.fc = nn.Linear(in_channels, num_classes)

    def loss(self, embeddings, label):
        logits = self.fc(embeddings)
        return dict(loss=F.cross_entropy(logits, label), accuracy=(logits.argmax(1) == label).float().mean())


def small_config(head=True, conv_cfg=None, **more):
    return dict(
        type=f"{FACE}.recognizer.FaceRecognizer",
        backbone=dict(type=f"{FACE}.mobilefacenet.MobileFaceNet", input_size=32, widen_factor=0.25, conv_cfg=conv_cfg),
        neck=dict(type=f"{FACE}.embedding.LinearEmbedding", in_channels=128, embedding_size=16),
        head=dict(type="PlainSoftmaxHead", num_classes=3, in_channels=16) if head else None,
        data_preprocessor=dict(type=f"{FACE}.preprocessor.FaceDataPreprocessor"),
        **more,
    )


def iresnet_config(depth, size, conv_cfg=None, **more):
    return dict(
        type=f"{FACE}.FaceRecognizer",
        backbone=dict(type=f"{FACE}.IResNet", depth=depth, conv_cfg=conv_cfg),
        neck=dict(type=f"{FACE}.LinearEmbedding", in_channels=512, embedding_size=512, map_size=size // 16),
        **more,
    )


def arcface_torch_state(depth, map_size, embedding_size=512):
    """Random weights and statistics under the keys, and in the shapes, of arcface_torch's checkpoints."""
    state = {}

    def conv(name, out_channels, channels, kernel):
        state[f"{name}.weight"] = torch.randn(out_channels, channels, kernel, kernel) / (channels * kernel**2) ** 0.5

    def norm(name, channels):
        state[f"{name}.weight"] = torch.ones(channels) if name == "features" else 0.5 + torch.rand(channels)
        state[f"{name}.bias"] = 0.1 * torch.randn(channels)
        state[f"{name}.running_mean"] = 0.1 * torch.randn(channels)
        state[f"{name}.running_var"] = 0.5 + torch.rand(channels)
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    conv("conv1", 64, 3, 3)
    norm("bn1", 64)
    state["prelu.weight"] = torch.rand(64)
    channels = 64
    for stage, blocks in enumerate(BLOCKS[depth]):
        wide = 64 * 2**stage
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            norm(f"{name}.bn1", channels)
            conv(f"{name}.conv1", wide, channels, 3)
            norm(f"{name}.bn2", wide)
            state[f"{name}.prelu.weight"] = torch.rand(wide)
            conv(f"{name}.conv2", wide, wide, 3)
            norm(f"{name}.bn3", wide)
            if block == 0:
                conv(f"{name}.downsample.0", wide, channels, 1)
                norm(f"{name}.downsample.1", wide)
            channels = wide
    norm("bn2", 512)
    numbers = 512 * map_size**2
    state["fc.weight"], state["fc.bias"] = torch.randn(embedding_size, numbers) / numbers**0.5, torch.randn(512)
    norm("features", embedding_size)
    return state


def arcface_torch_forward(state, x):
    """arcface_torch's network in evaluation mode, read off its state dict."""

    def norm(name, x):
        mean, var, weight, bias = (
            state[f"{name}.{key}"].view(1, -1, *[1] * (x.dim() - 2))
            for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def prelu(name, x):
        return x.clamp(min=0) + state[f"{name}.weight"].view(-1, 1, 1) * x.clamp(max=0)

    x = prelu("prelu", norm("bn1", F.conv2d(x, state["conv1.weight"], padding=1)))
    blocks = sorted({tuple(int(part) for part in key[5:].split(".")[:2]) for key in state if key.startswith("layer")})
    for stage, block in blocks:
        name, stride = f"layer{stage}.{block}", 1 if block else 2
        y = F.conv2d(norm(f"{name}.bn1", x), state[f"{name}.conv1.weight"], padding=1)
        y = prelu(f"{name}.prelu", norm(f"{name}.bn2", y))
        y = norm(f"{name}.bn3", F.conv2d(y, state[f"{name}.conv2.weight"], stride=stride, padding=1))
        if f"{name}.downsample.0.weight" in state:
            x = norm(f"{name}.downsample.1", F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride))
        x = x + y
    x = norm("bn2", x).flatten(1)
    return norm("features", x @ state["fc.weight"].T + state["fc.bias"])


@pytest.mark.parametrize("depth, size", [(18, 112), (50, 32)])
@pytest.mark.parametrize("conv_cfg", [None, dict(type="drconv_mm.DRConv")])
def test_arcface_torchs_checkpoint_gives_its_embeddings(depth, size, conv_cfg, tmp_path):
    state = arcface_torch_state(depth, size // 16)
    torch.save(state, tmp_path / "backbone.pth")
    image = torch.rand(2, 3, size, size) * 2 - 1
    want = F.normalize(arcface_torch_forward(state, image))
    assert (want[0] - want[1]).norm() > 0.01  # the embedding depends on the image

    by_torch = MODELS.build(iresnet_config(depth, size, conv_cfg))
    by_torch.load_state_dict(torch.load(tmp_path / "backbone.pth", weights_only=True), strict=True)
    checkpoint = str(tmp_path / "backbone.pth")
    by_init_cfg = MODELS.build(
        iresnet_config(depth, size, conv_cfg, init_cfg=dict(type="Pretrained", checkpoint=checkpoint))
    )
    by_init_cfg.init_weights()
    by_runner = MODELS.build(iresnet_config(depth, size, conv_cfg))  # how a Runner reads load_from
    load_checkpoint(by_runner, checkpoint, map_location="cpu", strict=True, revise_keys=[(r"^module\.", "")])
    for model in (by_torch, by_init_cfg, by_runner):
        with torch.no_grad():
            got = F.normalize(model.eval()(image))
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_iresnets_layout_is_arcface_torchs():
    for depth in (34, 100):
        with torch.device("meta"):
            state = IResNet(depth).state_dict() | LinearEmbedding(512, 512, 7).state_dict()
            published = arcface_torch_state(depth, 7)
        assert {key: value.shape for key, value in state.items()} == {k: v.shape for k, v in published.items()}


def test_a_checkpoint_of_the_whole_model_loads_as_ever(tmp_path):
    model = MODELS.build(small_config())
    save_checkpoint({"state_dict": model.state_dict()}, str(tmp_path / "model.pth"))
    again = MODELS.build(small_config())
    load_checkpoint(again, str(tmp_path / "model.pth"), strict=True)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    missing = again.load_state_dict(dict(unknown=torch.zeros(1)), strict=False)
    assert missing.unexpected_keys == ["unknown"] and "backbone.conv1.0.conv.weight" in missing.missing_keys


def coloured_faces(count):
    """Three identities that differ in colour."""
    label = torch.arange(count) % 3
    colour = 200 * F.one_hot(label, 3).view(-1, 3, 1, 1)
    return (torch.randint(0, 50, (count, 3, 32, 32)) + colour).to(torch.uint8), label


@pytest.mark.parametrize("conv_cfg", [None, dict(type="drconv_mm.DRConv")])
def test_it_trains_by_mmengines_train_step(conv_cfg):
    model = MODELS.build(small_config(conv_cfg=conv_cfg))
    model.init_weights()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    images, label = coloured_faces(12)
    batch = default_collate([dict(inputs=i, label=int(n)) for i, n in zip(images, label, strict=True)])
    logs = [model.train().train_step(batch, optimizer) for _ in range(12)]
    assert set(logs[0]) == {"loss", "accuracy"}
    assert logs[-1]["loss"] < 0.5 * logs[0]["loss"] and logs[-1]["accuracy"] == 1
    fixed = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert fixed == {"neck.features.weight"}
    for name, p in model.named_parameters():  # the norm behind the neck's bias takes it away
        assert torch.equal(p, before[name]) == (name in fixed) or name == "neck.fc.bias", name


def calibrated(model):
    """In evaluation mode, with the norms' statistics of such images: embeddings differ from image to image."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = None  # the mean over batches
            module.reset_running_stats()
    for _ in range(5):
        model.train()(torch.rand(16, 3, 32, 32) * 2 - 1)
    return model.eval()


def test_predict_sums_the_mirror_image_and_normalises():
    model = calibrated(MODELS.build(small_config(head=False)))
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    batch = default_collate([dict(inputs=image, index=i + 5) for i, image in enumerate(images)])
    results = model.test_step(dict(batch, path=["a", "b", "c"], box=torch.arange(12).view(3, 4)))
    with torch.no_grad():
        x = (images.float() - 127.5) / 127.5
        raw, mirror = model(x), model(x[..., range(31, -1, -1)])
    assert raw.shape == (3, 16) and not torch.allclose(raw.norm(dim=1), torch.ones(3))
    assert (raw - mirror).norm(dim=1).min() > 0.1 * raw.norm(dim=1).max()
    for i, result in enumerate(results):
        both = (raw + mirror)[i]
        torch.testing.assert_close(result["embedding"], both / both.square().sum().sqrt())
        assert (result["index"], result["path"], result["box"].tolist()) == (
            i + 5,
            "abc"[i],
            [4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3],
        )
    single = MODELS.build(small_config(head=False, flip_test=False)).eval()
    single.load_state_dict(model.state_dict())
    for result, embedding in zip(single.val_step(batch), raw, strict=True):
        torch.testing.assert_close(result["embedding"], embedding / embedding.norm())
    alone = model.test_step(dict(inputs=images[:1]))
    assert list(alone[0]) == ["embedding"]
    torch.testing.assert_close(alone[0]["embedding"], results[0]["embedding"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_embeddings_under_autocast_are_fp32_of_norm_1(dtype):
    model = calibrated(MODELS.build(small_config()))
    images, label = coloured_faces(6)
    want = torch.stack([result["embedding"] for result in model.test_step(dict(inputs=images))])
    with torch.autocast("cpu", dtype):
        results = model.test_step(dict(inputs=images))
        losses = model.train()(**model.data_preprocessor(dict(inputs=images, label=label)), mode="loss")
    got = torch.stack([result["embedding"] for result in results])
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.norm(dim=1), torch.ones(6))
    assert (got * want).sum(1).min() > 0.99
    losses["loss"].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_neck_is_float32_under_autocast(dtype):
    neck, feature = LinearEmbedding(64, 8, 2).eval(), torch.randn(3, 64, 2, 2)
    with torch.autocast("cpu", dtype):
        embedding = neck(feature)
    assert embedding.dtype is torch.float32 and torch.equal(embedding, neck(feature))


def test_a_batch_of_one_trains_where_no_norm_needs_more():
    model = MODELS.build(small_config()).train()
    model.neck.eval()
    model.backbone.norm_eval = True
    model.backbone.train()
    image, label = coloured_faces(1)
    model(**model.data_preprocessor(dict(inputs=image, label=label)), mode="loss")["loss"].backward()


def test_preprocessor():
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    batch = dict(inputs=images, index=torch.arange(2))
    default = FaceDataPreprocessor()(batch)
    torch.testing.assert_close(default["inputs"], (images.float() - 127.5) / 127.5)
    assert torch.equal(default["index"], batch["index"]) and batch["inputs"].dtype == torch.uint8
    assert (
        FaceDataPreprocessor()(dict(inputs=torch.tensor([0, 255]).byte().view(2, 1, 1, 1).expand(2, 3, 1, 1)))[
            "inputs"
        ].abs()
        == 1
    ).all()
    mean, std = (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)
    got = FaceDataPreprocessor(mean, std)(batch)["inputs"]
    for channel in range(3):
        torch.testing.assert_close(got[:, channel], (images[:, channel].float() - mean[channel]) / std[channel])
    assert not FaceDataPreprocessor().state_dict()


class Copied(torch.Tensor):
    """Keeps how it was last moved."""

    def to(self, *args, **kwargs):
        self.how = kwargs
        return self


@pytest.mark.parametrize("non_blocking", [False, True])
def test_preprocessor_copies_as_it_was_told(non_blocking):
    label = torch.arange(2).as_subclass(Copied)
    images = torch.zeros(2, 3, 4, 5, dtype=torch.uint8)
    FaceDataPreprocessor(non_blocking=non_blocking)(dict(inputs=images, label=label))
    assert label.how == dict(non_blocking=non_blocking)


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_necks_dropout(dropout):
    first, second = LinearEmbedding(3, 4, dropout=dropout)(torch.rand(2, 3, 1, 1))
    assert torch.equal(first, second) == (dropout == 1)


def broken(**change):
    config = small_config()
    config.update(change)
    return MODELS.build(config)


def predict_zero():
    model = MODELS.build(small_config()).eval()
    nn.init.zeros_(model.neck.fc.weight)
    nn.init.zeros_(model.neck.fc.bias)
    model.test_step(dict(inputs=torch.zeros(2, 3, 32, 32, dtype=torch.uint8), index=torch.tensor([40, 41])))


def predict_nan():
    model = MODELS.build(small_config()).eval()
    model.predict(torch.stack([torch.zeros(3, 32, 32), torch.full((3, 32, 32), torch.nan)]))


@pytest.mark.parametrize(
    "run, message",
    [
        (
            lambda: broken(head=dict(type="PlainSoftmaxHead", num_classes=3, in_channels=512)),
            "head.in_channels=512 must equal neck.embedding_size=16",
        ),
        (predict_zero, r"the embedding of image index=40 has norm 0 and no direction.*\(2 of 2 in this batch\)"),
        (predict_nan, r"the embedding of image index=1 has norm nan and no direction.*\(1 of 2 in this batch\)"),
        (
            lambda: broken()(torch.zeros(1, 3, 32, 32), torch.zeros(1).long(), mode="loss"),
            "a batch of one image cannot train: .*train_dataloader.drop_last=True",
        ),
        (lambda: broken()(torch.zeros(2, 3, 32, 32), mode="loss"), "a loss needs the entry `label`"),
        (lambda: broken(head=None)(torch.zeros(2, 3, 32, 32), mode="loss"), "a loss needs a head"),
        (lambda: broken()(torch.zeros(2, 3, 32, 32), mode="test"), "mode='test' is not known"),
        (lambda: broken()(torch.zeros(2, 3, 48, 32)), r"images are \(48, 32\) .* built for \(32, 32\)"),
        (
            lambda: LinearEmbedding(512, 512, 7)(torch.zeros(2, 512, 7, 6)),
            r"the feature map is \(512, 7, 6\) \(C, H, W\) and the neck was built for \(512, 7, 7\)",
        ),
        (lambda: LinearEmbedding(512, 512, 0), "map_size must be an integer of at least 1"),
        (
            lambda: FaceDataPreprocessor()(dict(inputs=[torch.zeros(3, 4, 4)])),
            r"got a list; set collate_fn=dict\(type='default_collate'\)",
        ),
        (
            lambda: FaceDataPreprocessor()(dict(inputs=torch.zeros(2, 4, 4, 3, dtype=torch.uint8))),
            r"got shape \(2, 4, 4, 3\); the channels come before",
        ),
        (
            lambda: FaceDataPreprocessor()(dict(inputs=torch.zeros(3, 4, 4, dtype=torch.uint8))),
            r"inputs must be uint8 \[N, 3, H, W\] in RGB, got shape \(3, 4, 4\)",
        ),
        (
            lambda: FaceDataPreprocessor()(dict(inputs=torch.zeros(2, 3, 4, 4))),
            "inputs must be uint8 grey levels of 0 to 255, got torch.float32",
        ),
        (lambda: FaceDataPreprocessor(mean=(1, 2)), r"mean must be one number or three, got \(1, 2\)"),
        (lambda: FaceDataPreprocessor(std=0), "std must be positive, got 0"),
    ],
)
def test_errors(run, message):
    with pytest.raises(ValueError, match=message):
        run()


def test_the_default_preprocessor_and_the_papers_size():
    model = FaceRecognizer(
        dict(type=MobileFaceNet, input_size=(112, 96)), dict(type=LinearEmbedding, in_channels=512, embedding_size=128)
    ).eval()
    (result,) = model.test_step(dict(inputs=torch.randint(0, 256, (1, 3, 112, 96), dtype=torch.uint8)))
    assert result["embedding"].shape == (128,) and isinstance(model.data_preprocessor, FaceDataPreprocessor)
