from __future__ import annotations

import importlib

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint, save_checkpoint
from torch.nn.modules.batchnorm import _BatchNorm

from drconv_mm import DRConv2d, DRConvShuffleNetV2, MobileNetV1
from drconv_mm.layers import observe_regions
from drconv_mm.models.backbones.drconv_shufflenet_v2 import ShuffleBlock

SMALL = {DRConvShuffleNetV2: 0.5, MobileNetV1: 0.25}


def dynamic_names(model):
    return [name for name, module in model.named_modules() if isinstance(module, DRConv2d)]


@pytest.mark.parametrize(
    "backbone, width, channels, strides",
    [
        (MobileNetV1, 1.0, (64, 128, 256, 512, 1024), (2, 4, 8, 16, 32)),
        (MobileNetV1, 0.25, (16, 32, 64, 128, 256), (2, 4, 8, 16, 32)),
        (DRConvShuffleNetV2, 0.5, (48, 96, 192, 1024), (8, 16, 32, 32)),
        (DRConvShuffleNetV2, 1.0, (116, 232, 464, 1024), (8, 16, 32, 32)),
        (MobileNetV1, 0.3, (19, 38, 77, 154, 307), (2, 4, 8, 16, 32)),  # the nearest, not the one below
        (DRConvShuffleNetV2, 1.5, (176, 352, 704, 1024), (8, 16, 32, 32)),
        (DRConvShuffleNetV2, 2.0, (244, 488, 976, 2048), (8, 16, 32, 32)),
        (DRConvShuffleNetV2, 0.75, (82, 164, 328, 1024), (8, 16, 32, 32)),
    ],
)
def test_outputs_of_every_stage(backbone, width, channels, strides):
    model = backbone(width, out_indices=range(len(channels))).eval()
    with torch.no_grad():
        outputs = model(torch.randn(1, 3, 64, 96))
    assert [tuple(o.shape) for o in outputs] == [
        (1, c, 64 // s, 96 // s) for c, s in zip(channels, strides, strict=True)
    ]
    chosen = backbone(width, out_indices=(1, 2)).eval()
    chosen.load_state_dict(model.state_dict())
    with torch.no_grad():
        for got, want in zip(chosen(torch.zeros(1, 3, 64, 64)), model(torch.zeros(1, 3, 64, 64))[1:3], strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("toolbox", ["mmpretrain", "mmdet", "mmseg"])
@pytest.mark.parametrize("backbone", SMALL)
def test_every_toolbox_builds_them(toolbox, backbone):
    init_default_scope(toolbox)
    registry = importlib.import_module(f"{toolbox}.registry").MODELS
    for name in (f"drconv_mm.{backbone.__name__}", backbone.__name__):
        assert isinstance(registry.build(dict(type=name, widen_factor=0.5)), backbone)


@pytest.mark.parametrize("backbone", SMALL)
def test_frozen_stages_and_norm_eval(backbone):
    model = backbone(SMALL[backbone], frozen_stages=2, norm_eval=True)
    frozen = [model.conv1, *model.layers[:2]]
    # From the start: DDP notes what is to train before anything calls train().
    assert not any(p.requires_grad for module in frozen for p in module.parameters())
    model.train()
    assert not any(p.requires_grad for module in frozen for p in module.parameters())
    assert all(p.requires_grad for module in model.layers[2:] for p in module.parameters())
    assert not any(m.training for m in model.modules() if isinstance(m, _BatchNorm))
    assert model.layers[2].training
    model = backbone(SMALL[backbone], frozen_stages=0).train()
    assert not model.conv1.bn.training and model.layers[0][0].training
    assert all(p.requires_grad for p in backbone(SMALL[backbone]).train().parameters())


@pytest.mark.parametrize("backbone", SMALL)
def test_init_weights_leaves_drconv_to_itself_and_pretrained_loads(backbone, tmp_path):
    more = {"conv_cfg": dict(type="drconv_mm.DRConv")} if backbone is MobileNetV1 else {}
    torch.manual_seed(0)
    model = backbone(SMALL[backbone], **more)
    model.init_weights()
    guides = {name: value for name, value in model.named_parameters() if name.endswith("guide_weight")}
    mixing = {name: value for name, value in model.named_parameters() if name.endswith("routing_bias")}
    assert len(guides) > 10 and len(mixing) == len(dynamic_names(model))
    # Their own start: kernels that sum to zero, logits of std 3; mmengine's Kaiming and constants have neither.
    assert all(guide.sum((1, 2, 3)).abs().max() < 1e-5 < guide.std() for guide in guides.values())
    assert 2.7 < torch.cat(list(mixing.values())).std() < 3.3
    save_checkpoint({"state_dict": model.state_dict()}, str(tmp_path / "b.pth"))
    again = backbone(SMALL[backbone], init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "b.pth")), **more)
    again.init_weights()
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_which_convolutions_are_dynamic():
    for arrangement, places in (("both", "02"), ("first", "0"), ("last", "2"), ("none", "")):
        names = dynamic_names(DRConvShuffleNetV2(0.5, arrangement))
        assert {name.split("branch2.")[1] for name in names} == {f"{place}.conv" for place in places}
        assert len(names) == 16 * len(places)


def test_the_guide_is_computed_once_a_block_and_resized_by_nearest_behind_the_stride():
    torch.manual_seed(0)
    model = DRConvShuffleNetV2(0.5).eval()
    inputs, maps = {}, {}
    for name, module in model.named_modules():
        if isinstance(module, ShuffleBlock):
            module.guide.register_forward_hook(lambda m, x, y, name=name: inputs.setdefault(name, []).append(y))
    with observe_regions(model, lambda name, regions, m: maps.update({name: regions})), torch.no_grad():
        model(torch.randn(2, 3, 64, 64))
    assert all(len(calls) == 1 for calls in inputs.values()) and len(inputs) == 16
    for block, (guide,) in inputs.items():
        first, last = maps[f"{block}.branch2.0.conv"], maps[f"{block}.branch2.2.conv"]
        assert torch.equal(first, guide.argmax(1))
        assert torch.equal(last, F.interpolate(guide, last.shape[1:], mode="nearest").argmax(1))
        assert last.shape[1] == first.shape[1] // (2 if block.endswith(".0") else 1)
    own = DRConvShuffleNetV2(0.5, share_guide=False)
    assert all(own.get_submodule(name).guide_weight is not None for name in dynamic_names(own))
    assert not any("guide.guide_weight" in name for name in own.state_dict())


@pytest.mark.parametrize("share_guide", [True, False])
def test_a_checkpoint_of_mmpretrains_shufflenet_computes_the_same(tmp_path, share_guide):
    from mmpretrain.models import ShuffleNetV2

    torch.manual_seed(0)
    standard = ShuffleNetV2(0.5, out_indices=(0, 1, 2, 3))
    for _ in range(3):
        standard(torch.randn(4, 3, 64, 64))
    standard.eval()
    save_checkpoint({"state_dict": standard.state_dict()}, str(tmp_path / "standard.pth"))
    image = torch.randn(2, 3, 64, 64)
    for arrangement in ("none", "both", "last"):
        model = DRConvShuffleNetV2(0.5, arrangement, share_guide, out_indices=(0, 1, 2, 3)).eval()
        load_checkpoint(model, str(tmp_path / "standard.pth"), strict=True)
        with torch.no_grad():
            for got, want in zip(model(image), standard(image), strict=True):
                torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_a_dynamic_checkpoint_without_the_guide_is_reported():
    """Nothing may be made up beside trained weights: one with a guide for each layer is no standard network's."""
    for arrangement in ("both", "first", "last"):
        state = DRConvShuffleNetV2(0.5, arrangement, share_guide=False).state_dict()
        found = DRConvShuffleNetV2(0.5, arrangement).load_state_dict(state, strict=False)
        assert sum(key.endswith("guide.guide_weight") for key in found.missing_keys) == 16, arrangement


def test_a_checkpoint_of_a_standard_mobilenet_computes_the_same(tmp_path):
    torch.manual_seed(0)
    standard = MobileNetV1(0.25).eval()
    save_checkpoint({"state_dict": standard.state_dict()}, str(tmp_path / "standard.pth"))
    pretrained = dict(type="Pretrained", checkpoint=str(tmp_path / "standard.pth"))
    model = MobileNetV1(0.25, conv_cfg=dict(type="drconv_mm.DRConv"), init_cfg=pretrained).eval()
    model.init_weights()
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(image)[-1], standard(image)[-1], rtol=1e-3, atol=1e-4)
    assert len(dynamic_names(model)) > 10


@pytest.mark.parametrize("without", ["norm_cfg", "act_cfg"])
def test_blocks_without_norm_or_activation(without):
    for arrangement in ("none", "both"):
        model = DRConvShuffleNetV2(0.5, arrangement, **{without: None}).eval()
        with torch.no_grad():
            assert model(torch.randn(1, 3, 64, 64))[-1].isfinite().all()


def test_every_parameter_learns():
    torch.manual_seed(0)
    for model in (DRConvShuffleNetV2(0.5), MobileNetV1(0.25, conv_cfg=dict(type="drconv_mm.DRConv"))):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for _ in range(3):  # the guide has no gradient while all regions' filters are equal
            optimizer.zero_grad()
            model(torch.randn(4, 3, 64, 64))[0].square().mean().backward()
            optimizer.step()
        for name, p in model.named_parameters():
            assert not torch.equal(p, before[name]), name


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: MobileNetV1(0.001), r"widen_factor=0.001 leaves a layer without channels \(0.032\)"),
        (lambda: DRConvShuffleNetV2(0.01), "widen_factor=0.01 leaves a layer without channels"),
        (lambda: DRConvShuffleNetV2(2.5), "widen_factor must be at most 2.0, got 2.5"),
        (
            lambda: DRConvShuffleNetV2(0.5, arrangement="second"),
            r"arrangement='second' is not known; choose one of \['both', 'first', 'last', 'none'\]",
        ),
        (lambda: DRConvShuffleNetV2(drconv=dict(guide_kernel_size=3)), "blocks share a guide: share_guide=False"),
        (lambda: MobileNetV1(out_indices=(5,)), r"out_indices=\(5,\) must be stages 0 to 4, got 5"),
        (lambda: DRConvShuffleNetV2(frozen_stages=5), r"frozen_stages must be -1 \(none\) to 4, got 5"),
    ],
)
def test_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("training", [False, True])
def test_a_network_compiles_as_one_graph(training):
    torch.manual_seed(0)
    model = DRConvShuffleNetV2(0.5).train(training)
    images = torch.randn(2, 3, 64, 64)
    model(images)  # the report of the first forward is behind us
    state = {name: value.clone() for name, value in model.state_dict().items()}
    expected = model(images)
    model.load_state_dict(state)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(images), expected, strict=True):
        torch.testing.assert_close(got, want)
