from __future__ import annotations

import copy

import pytest
import torch
from mmcv.cnn.bricks import wrappers
from mmengine import MODELS
from torch import nn
from torchvision.models import mobilenet_v3_small, resnet18

from drconv_mm import DRConv, DRConv2d, convert


@pytest.mark.parametrize("generator", ["mixture", "pooled"])
@pytest.mark.parametrize("factory", [resnet18, mobilenet_v3_small])
def test_preserves_the_function_of_any_model(factory, generator):
    model = factory(weights=None).eval()
    input = torch.randn(2, 3, 64, 64)
    expected = model(input)
    changed = convert(model, generator=generator, num_regions=4, apply_to=dict(depthwise=True))
    assert changed and all(model.get_submodule(name) is layer for name, layer in changed.items())
    torch.testing.assert_close(model(input), expected, rtol=1e-4, atol=1e-5)
    model.train()(input).sum().backward()
    assert all(p.grad is not None for layer in changed.values() for p in layer.parameters())


def test_include_and_exclude():
    model = resnet18(weights=None)
    changed = convert(
        model, include=["layer1", "layer2.*.conv1"], exclude="*.1.*", apply_to=dict(max_filter_numel=10**9)
    )
    assert sorted(changed) == ["layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1"]


def test_takes_over_dtype_mode_freezing_and_sharing():
    shared = nn.Conv2d(6, 6, 3, padding=1)
    model = nn.ModuleDict(dict(a=shared, b=shared, c=nn.Conv2d(6, 6, 1))).double().eval()
    model["c"].requires_grad_(False)
    changed = convert(model)
    assert changed["a"] is changed["b"] is model["a"] is model["b"]
    assert not changed["a"].training and changed["a"].static_weight.dtype is torch.float64
    assert not any(p.requires_grad for p in changed["c"].parameters())
    assert all(p.requires_grad for p in changed["a"].parameters())
    model = nn.Sequential(nn.Conv2d(6, 6, 1))
    model[0].bias.requires_grad_(False)
    assert [name for name, p in convert(model)["0"].named_parameters() if not p.requires_grad] == ["bias"]


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_shared_convolution_has_any_of_its_names(name):
    """As in mmdet's RTMDet, whose levels share theirs."""
    shared = nn.Conv2d(6, 6, 3)
    model = nn.ModuleDict(dict(a=shared, b=shared, c=nn.Conv2d(6, 6, 3)))
    with pytest.raises(ValueError, match="none of the convolutions named"):
        convert(model, include=["a", "b"], exclude=name)
    assert sorted(convert(model, include=name)) == ["a", "b"]
    assert model["a"] is model["b"] and isinstance(model["a"], DRConv2d) and type(model["c"]) is nn.Conv2d


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_takes_over_geometry(mode):
    model = nn.Sequential(
        nn.Conv2d(6, 8, 3, padding=2, dilation=2, padding_mode=mode),
        nn.Conv2d(8, 8, 3, stride=2, groups=2, padding_mode=mode),
    )
    input = torch.randn(2, 6, 9, 8)
    expected = model(input)
    assert len(convert(model, apply_to=dict(grouped=True))) == 2
    torch.testing.assert_close(model(input), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["forward_pre", "forward", "full_backward", "full_backward_pre"])
def test_a_convolution_with_a_hook_is_left_alone(kind):
    conv = nn.Conv2d(8, 8, 3)
    getattr(conv, f"register_{kind}_hook")(lambda *arguments: None)
    with pytest.raises(ValueError, match="it has hooks, which would be lost"):
        convert(nn.Sequential(conv))


def test_the_cap_counts_m():
    assert convert(nn.Sequential(nn.Conv2d(64, 128, 3)), num_regions=2)
    with pytest.raises(ValueError, match="over max_filter_numel"):
        convert(nn.Sequential(nn.Conv2d(64, 128, 3)), num_regions=16)


def test_a_pattern_that_matches_nothing_names_near_misses():
    model = resnet18(weights=None)
    with pytest.raises(ValueError, match=r"include='layer1.0.conv' matches none of the 20 .*layer1.0.conv1"):
        convert(model, include="layer1.0.conv")
    with pytest.raises(ValueError, match=r"include='layr1.\*' matches none .*near misses: layer1, "):
        convert(model, include="layr1.*")
    with pytest.raises(ValueError, match="exclude='head' matches none"):
        convert(model, exclude="head")
    assert not any(isinstance(module, DRConv2d) for module in model.modules())


def test_nothing_chosen_gives_the_reasons():
    with pytest.raises(ValueError, match=r"none of the convolutions named may become DRConv \(1: in_channels under"):
        convert(resnet18(weights=None), include="conv1")
    with pytest.raises(ValueError, match="convolution itself"):
        convert(nn.Conv2d(8, 8, 3))
    model = nn.Sequential(nn.Conv2d(8, 8, 3))
    convert(model)
    with pytest.raises(ValueError, match="all are DRConv already"):
        convert(model)


def test_convolutions_that_compute_something_else_are_left_alone():
    class Standardised(nn.Conv2d):
        def forward(self, input):
            return super().forward(input) * 2

    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3))
    hooked = nn.Conv2d(8, 8, 3)
    hooked.register_forward_hook(lambda module, args, output: output * 2)
    model = nn.Sequential(Standardised(8, 8, 3), normed, nn.Conv2d(8, 8, 3), hooked, wrappers.Conv2d(8, 8, 3))
    assert list(convert(model)) == ["2", "4"]


def test_convolutions_that_share_a_parameter_are_left_alone():
    model = nn.Sequential(*(nn.Conv2d(8, 8, 3) for _ in range(4)), nn.Linear(8, 8))
    model[1].weight, model[3].bias = model[0].weight, model[4].bias
    with pytest.raises(ValueError, match=r"3: it shares a parameter with another module"):
        convert(copy.deepcopy(model), exclude="2")
    assert list(convert(model)) == ["2"]
    assert model[1].weight is model[0].weight and model[3].bias is model[4].bias


def test_layers_that_the_conv_type_left_plain():
    model = nn.Sequential(DRConv(8, 8, 3, groups=2))  # not run yet: it still has the report's hook
    assert list(convert(model, apply_to=dict(grouped=True))) == ["0"]


def test_bad_option_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    with pytest.raises(ValueError, match="num_regions"):
        convert(model, num_regions=0)
    with pytest.raises(ValueError, match="convert has no argument 'num_region'.* did you mean 'num_regions'"):
        convert(model, num_region=4)
    with pytest.raises(ValueError, match="no static kernel for the weights"):
        convert(model, generator=dict(type="pooled", static=False))
    assert not any(isinstance(module, DRConv2d) for module in model.modules())


def test_retrofit_from_a_flat_config():
    backbone = dict(type="mmdet.ResNet", depth=18)
    plain = MODELS.build(backbone)
    built = MODELS.build(
        dict(
            type="drconv_mm.Retrofit",
            drconv=dict(model_type="mmdet.ResNet", include=["layer1.*"], num_regions=4),
            depth=18,
        )
    )
    assert type(built) is type(plain)
    dynamic = [name for name, module in built.named_modules() if isinstance(module, DRConv2d)]
    assert len(dynamic) == 4 and all(name.startswith("layer1") for name in dynamic)
    built.load_state_dict(plain.state_dict())
    input = torch.randn(1, 3, 32, 32)
    built.eval(), plain.eval()  # mmdet's ResNet returns None from it
    for got, want in zip(built(input), plain(input), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_retrofit_without_a_model_type():
    with pytest.raises(ValueError, match="drconv must name the model as model_type="):
        MODELS.build(dict(type="drconv_mm.Retrofit", drconv=dict(include="x"), depth=18))
