from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import ExponentialMovingAverage, revert_sync_batchnorm
from mmengine.runner import load_checkpoint
from torch import nn
from torch.utils.checkpoint import checkpoint

from drconv_mm import DRConv2d, convert, region_conv2d
from drconv_mm.layers import GENERATORS, FilterGenerator, observe_regions, register_generator

GEOMETRIES = [
    dict(kernel_size=1),
    dict(kernel_size=3, padding=1),
    dict(kernel_size=3, stride=2, padding=1),
    dict(kernel_size=(3, 5), padding=(0, 2), dilation=(2, 1)),
    dict(kernel_size=3, padding="same", dilation=2),
    dict(kernel_size=(2, 3), padding="same"),
    dict(kernel_size=3, padding="valid"),
    dict(kernel_size=3, padding=1, groups=2),
    dict(kernel_size=3, padding=1, groups=6),
    dict(kernel_size=3, padding=1, padding_mode="reflect"),
    dict(kernel_size=3, padding=2, padding_mode="circular", stride=(2, 1)),
]
KINDS = ["mixture", "pooled"]


def images(n=2, c=6, size=(17, 14)):
    return torch.randn(n, c, *size)


def train(module, steps, input=None, lr=0.1):
    input = images() if input is None else input
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=lr)
    target = torch.randn_like(module(input).detach())
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(module(input), target).backward()
        optimizer.step()


@pytest.mark.parametrize("generator", KINDS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
class TestFunctionPreservingLoad:
    def test_through_torch(self, generator, geometry):
        conv = nn.Conv2d(6, 12, **geometry)
        layer = DRConv2d(6, 12, **geometry, generator=generator)
        given = conv.state_dict()
        assert layer.load_state_dict(given) == ([], [])
        assert list(given) == ["weight", "bias"], "the caller's dict is his own"
        input = images()
        torch.testing.assert_close(layer(input), conv(input), rtol=1e-5, atol=1e-6)

    def test_trains_away(self, generator, geometry):
        layer = DRConv2d(6, 12, **geometry, generator=generator)
        layer.load_state_dict(nn.Conv2d(6, 12, **geometry).state_dict())
        input = images()
        train(layer, 20, input)
        filters = layer.generate_filters(input)[0].flatten(1)
        values = torch.linalg.svdvals(filters - filters.mean(0))
        assert values[1] / values[0] > 1e-3
        before = layer(input)
        with torch.no_grad():
            for parameter in layer.generator.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        assert (layer(input) - before).abs().max() > 1e-3


@pytest.mark.parametrize("generator", KINDS)
def test_function_preserving_load_through_mmengine(generator, tmp_path, caplog):
    plain = nn.Sequential(nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)).eval()
    dynamic = nn.Sequential(
        DRConv2d(6, 8, 3, bias=False, generator=generator), nn.BatchNorm2d(8), DRConv2d(8, 4, 1, generator=generator)
    ).eval()
    torch.save(dict(state_dict=plain.state_dict(), meta={}), tmp_path / "plain.pth")
    load_checkpoint(dynamic, str(tmp_path / "plain.pth"), map_location="cpu", strict=True)
    input = images()
    torch.testing.assert_close(dynamic(input), plain(input), rtol=1e-5, atol=1e-6)


def test_function_preserving_load_as_pretrained_backbone(tmp_path):
    from mmdet.models.backbones import ResNet

    plain = ResNet(18, norm_eval=False)
    plain.init_weights()
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    dynamic = ResNet(
        18,
        conv_cfg=dict(type="drconv_mm.DRConv"),
        norm_eval=False,
        init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "plain.pth")),
    )
    dynamic.init_weights()
    assert isinstance(dynamic.layer1[0].conv1, DRConv2d)
    input = torch.randn(1, 3, 64, 48)
    dynamic.eval(), plain.eval()  # mmdet's ResNet returns None from it
    for got, want in zip(dynamic(input), plain(input), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_a_detectors_backbone_may_lack_keys(tmp_path):
    """A backbone checkpoint in a bigger model: missing keys are reported, nothing is raised."""
    model = nn.ModuleDict(dict(backbone=DRConv2d(6, 8, 3), head=DRConv2d(8, 4, 1)))
    result = model.load_state_dict(
        {f"backbone.{k}": v for k, v in nn.Conv2d(6, 8, 3).state_dict().items()}, strict=False
    )
    assert not result.unexpected_keys and all(key.startswith("head.") for key in result.missing_keys)


def test_a_guide_beside_a_plain_weight_is_taken():
    layer, guide = DRConv2d(6, 8, 3), torch.randn(8, 6, 3, 3)
    layer.load_state_dict({**nn.Conv2d(6, 8, 3).state_dict(), "guide_weight": guide})
    assert torch.equal(layer.guide_weight, guide)


def test_repr_says_what_differs_from_the_defaults():
    assert repr(DRConv2d(6, 8, 3)).startswith("DRConv2d(\n  6, 8, kernel_size=(3, 3), stride=(1, 1), num_regions=8\n")
    text = repr(DRConv2d(6, 8, 3, padding=1, groups=2, bias=False, generator=dict(static=False), guide_grad="topk"))
    assert "stride=(1, 1), padding=(1, 1), groups=2, guide_grad='topk', guide_topk=2, bias=False, static=False" in text


class TestErrorsOfLoading:
    def test_another_number_of_regions(self):
        message = r"guide_weight: the checkpoint has num_regions=4 and the model 8; build it with num_regions=4"
        with pytest.raises(RuntimeError, match=message):
            DRConv2d(6, 8, 3).load_state_dict(DRConv2d(6, 8, 3, num_regions=4).state_dict())

    def test_another_number_of_kernels(self):
        other = DRConv2d(6, 8, 3, generator=dict(type="mixture", num_kernels=5))
        with pytest.raises(RuntimeError, match=r"num_kernels=5 and the model 8; build it with generator=dict"):
            DRConv2d(6, 8, 3).load_state_dict(other.state_dict())

    def test_nothing_is_raised_inside(self):
        errors = []
        layer, other = DRConv2d(6, 8, 3), DRConv2d(6, 8, 3, num_regions=4)
        layer._load_from_state_dict(other.state_dict(), "", {}, True, [], [], errors)
        assert any("num_regions=4" in error for error in errors)

    def test_no_static_kernel(self):
        layer = DRConv2d(6, 8, 3, generator=dict(type="pooled", static=False))
        with pytest.raises(RuntimeError, match="needs a static kernel to go into"):
            layer.load_state_dict(nn.Conv2d(6, 8, 3).state_dict())

    def test_a_plain_weight_of_another_shape(self):
        with pytest.raises(RuntimeError, match=r"size mismatch for static_weight"):
            DRConv2d(6, 8, 3).load_state_dict(nn.Conv2d(6, 8, 5).state_dict())


@pytest.mark.parametrize("generator", KINDS)
@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("geometry", [GEOMETRIES[0], GEOMETRIES[1], GEOMETRIES[7]], ids=str)
def test_fresh_layer_has_the_variance_of_the_convolution_it_replaces(generator, static, geometry):
    def output_variance(conv_cfg):
        torch.manual_seed(1)
        module = ConvModule(32, 64, **geometry, conv_cfg=conv_cfg, act_cfg=dict(type="ReLU"))
        # The paper's formula alone has nearly equal taps: only of uncorrelated inputs is the variance defined.
        input = torch.randn(8, 32, 24, 24)
        return module.conv(input.relu() if static else input).var().item()

    config = dict(type="drconv_mm.DRConv", generator=dict(type=generator, static=static), apply_to=dict(grouped=True))
    ratio = output_variance(config) / output_variance(None)
    assert 0.8 < ratio < 1.2


@pytest.mark.parametrize("generator", KINDS)
@pytest.mark.parametrize("static, least, most", [(False, 0.1, 2), (True, 0.003, 0.1)])
def test_fresh_regions_differ(generator, static, least, most):
    # Beside a static kernel they start close: see docs/learning.md.
    layer = DRConv2d(6, 12, 3, generator=dict(type=generator, static=static))
    filters = layer.generate_filters(images(1))[0].flatten(1)
    apart = torch.cdist(filters, filters) / filters.norm(dim=1).mean()
    assert least < apart[~torch.eye(8, dtype=bool)].min() < most


@pytest.mark.parametrize("generator", KINDS)
def test_a_thousandth_of_a_fresh_layers_variance_is_dynamic(generator):
    layer = DRConv2d(32, 64, 3, generator=generator)
    filters = layer.generate_filters(images(c=32))
    share = (filters - layer.static_weight).var() / filters.var()
    assert 0.7e-3 < share < 1.4e-3


@pytest.mark.parametrize("generator, gain", [("mixture", 4.0), ("pooled", 0.5)])
def test_the_dynamic_part_has_a_gain_beside_a_static_kernel(generator, gain):
    alone = DRConv2d(6, 4, 3, generator=dict(type=generator, static=False))
    layer = DRConv2d(6, 4, 3, generator=generator)
    layer.generator.load_state_dict(alone.generator.state_dict())
    input = images()
    expected = layer.static_weight + gain * alone.generate_filters(input)
    torch.testing.assert_close(layer.generate_filters(input), expected)


def test_a_fresh_guide_prefers_no_region_and_has_unit_variance():
    weight = DRConv2d(32, 8, 3, num_regions=5).guide_weight
    torch.testing.assert_close(weight.mean((1, 2, 3)), torch.zeros(5), rtol=0, atol=1e-6)
    output = F.conv2d(torch.randn(4, 32, 20, 20), weight)
    assert 0.9 < output.var() < 1.1


def test_the_guide_learns_by_the_exact_gradient_unless_told_otherwise():
    layer = DRConv2d(6, 8, 3)
    assert (layer.guide_grad, layer.guide_topk, layer.guide_grad_scale) == ("full", 2, 1.0)


def test_fresh_guide_uses_several_regions_on_natural_images(shared_data):
    import mmcv

    shares = []
    for path in sorted((shared_data / "coco_mini").rglob("*.jpg"))[:8]:
        image = torch.from_numpy(mmcv.imresize(mmcv.imread(path), (160, 120))).permute(2, 0, 1)[None].float()
        features = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())((image - 115) / 57)
        layer = DRConv2d(32, 32, 3, padding=1)
        with observe_regions(layer, lambda name, regions, m: shares.append(regions.flatten().bincount(minlength=m))):
            layer(features.detach())
    for share in shares:
        share = share / share.sum()
        assert (share > 0.02).sum() > 1
        assert -(share * share.clamp_min(1e-12).log()).sum() > 0.5


def test_mixture_without_static_kernel_is_the_authors_formula():
    layer = DRConv2d(6, 4, 3, num_regions=5, generator=dict(type="mixture", num_kernels=3, static=False))
    input = images()
    expected = torch.zeros(2, 5, 4, 6, 3, 3)
    for n in range(2):
        means = input[n].mean((1, 2))
        for j in range(5):
            for k in range(3):
                row = j * 3 + k
                logit = (layer.generator.routing_weight[row] * means).sum() + layer.generator.routing_bias[row]
                expected[n, j] += 2 * torch.sigmoid(logit) / 3 * layer.generator.kernels[k].detach()
    torch.testing.assert_close(layer.generate_filters(input), expected)


def test_pooled_without_static_kernel_is_the_papers_formula():
    m, o, c, k = 3, 4, 6, (3, 5)
    layer = DRConv2d(c, o, k, num_regions=m, generator=dict(type="pooled", static=False))
    generator, input = layer.generator, images(size=(9, 12))
    squeeze, expand = nn.Conv2d(c, m * m, 1), nn.Conv2d(m * m, m * o * c, 1, groups=m, bias=False)
    squeeze.weight.data, squeeze.bias.data = generator.squeeze_weight.data, generator.squeeze_bias.data
    expand.weight.data = generator.expand_weight.data
    expected = expand(torch.sigmoid(squeeze(nn.AdaptiveAvgPool2d(k)(input)))).view(2, m, o, c, *k)
    torch.testing.assert_close(layer.generate_filters(input), expected)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("guide_kernel_size", [None, 1, (3, 1)])
def test_forward_is_the_operator_on_generated_filters(geometry, guide_kernel_size):
    layer = DRConv2d(6, 12, **geometry, guide_kernel_size=guide_kernel_size)
    input = images()
    output = layer(input)
    assert output.shape == nn.Conv2d(6, 12, **geometry)(input).shape
    seen = {}
    with observe_regions(layer, lambda name, regions, m: seen.update(regions=regions)):
        layer(input)
    filters = layer.generate_filters(input)
    plain = {k: v for k, v in geometry.items() if k != "kernel_size"}
    for j in range(8):
        conv = nn.Conv2d(6, 12, geometry["kernel_size"], **plain)
        conv.bias = layer.bias
        for n in range(2):
            conv.weight = nn.Parameter(filters[n, j].detach())
            chosen = seen["regions"][n] == j
            torch.testing.assert_close(output[n][:, chosen], conv(input[n : n + 1])[0][:, chosen], rtol=1e-4, atol=1e-5)


def test_observers_within_observers():
    """A later one sees what an earlier one put in the map's place, and leaves that one as it was."""
    layer, input, seen = DRConv2d(6, 4, 1), images(), []

    def threes(name, regions, m):
        return torch.full_like(regions, 3)

    own = layer(input)
    with observe_regions(layer, threes):
        replaced = layer(input)
        with observe_regions(layer, lambda name, regions, m: seen.append(regions)):
            torch.testing.assert_close(layer(input), replaced)
        with observe_regions(layer, lambda name, regions, m: regions * 0):
            zeros = layer(input)
        torch.testing.assert_close(layer(input), replaced)
    assert len(seen) == 1 and (seen[0] == 3).all()
    assert not torch.allclose(replaced, own) and not torch.allclose(zeros, replaced)
    torch.testing.assert_close(layer(input), own)


def test_observers_end_in_any_order():
    layer, input, seen = DRConv2d(6, 4, 1), images(), []
    own = layer(input)
    first = observe_regions(layer, lambda name, regions, m: torch.full_like(regions, 3))
    second = observe_regions(layer, lambda name, regions, m: seen.append(regions))
    first.__enter__(), second.__enter__()
    layer(input)
    first.__exit__(None, None, None)  # hooks end in the order in which they began
    torch.testing.assert_close(layer(input), own)
    assert (seen[0] == 3).all() and not (seen[1] == 3).all()
    second.__exit__(None, None, None)
    layer(input)
    assert len(seen) == 2 and not layer._observers


def test_the_guide_learns_nothing_from_a_map_put_in_its_place():
    layer = DRConv2d(6, 4, 1)
    with observe_regions(layer, lambda name, regions, m: regions.flip(-1)):
        layer(images()).square().sum().backward()
    assert layer.guide_weight.grad is None or not layer.guide_weight.grad.any()
    assert layer.static_weight.grad.any()


def test_a_small_guide_looks_at_the_middle_of_the_window():
    layer = DRConv2d(6, 4, 3, padding=0, guide_kernel_size=1, bias=False)
    input, seen = images(), {}
    with observe_regions(layer, lambda name, regions, m: seen.update(regions=regions)):
        layer(input)
    middle = F.conv2d(input, layer.guide_weight)[:, :, 1:-1, 1:-1]
    assert torch.equal(seen["regions"], middle.argmax(1))


def test_of_a_window_without_a_middle_a_small_guide_sees_the_pixel_before_it():
    layer = DRConv2d(6, 4, 2, padding="same", guide_kernel_size=1)
    input, seen = images(), {}
    with observe_regions(layer, lambda name, regions, m: seen.update(regions=regions)):
        layer(input)
    assert torch.equal(seen["regions"], F.conv2d(input, layer.guide_weight).argmax(1))


def test_a_guide_of_one_number_is_not_centred_away():
    assert DRConv2d(1, 4, 1).guide_weight.all()


def test_a_guide_is_given_to_a_dilated_layer():
    layer = DRConv2d(6, 4, 3, padding=(2, 1), dilation=(2, 1), own_guide=False)
    input, guide = images(), torch.randn(2, 8, 17, 14)
    expected = region_conv2d(input, layer.generate_filters(input), guide, layer.bias, padding=(2, 1), dilation=(2, 1))
    torch.testing.assert_close(layer(input, guide), expected)


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_numbers_that_are_generated(groups):
    layer = DRConv2d(8, 16, 3, groups=groups)
    assert layer.filter_numel == layer.generate_filters(torch.randn(1, 8, 5, 5)).numel()


def test_a_shared_guide_is_resized_by_nearest():
    layer = DRConv2d(6, 4, 3, stride=2, padding=1, own_guide=False)
    input, guide = images(size=(16, 12)), torch.randn(2, 8, 16, 12)
    expected = region_conv2d(
        input, layer.generate_filters(input), guide[:, :, ::2, ::2], layer.bias, stride=2, padding=1
    )
    torch.testing.assert_close(layer(input, guide), expected)
    with pytest.raises(ValueError, match="own_guide=False, got None"):
        layer(input)
    with pytest.raises(ValueError, match="guide must have one channel a region, m=8"):
        layer(input, guide[:, :5])


@pytest.mark.parametrize("size", [(4, 4), (17, 14)])  # in training a small map takes another way
@pytest.mark.parametrize("training", [True, False])
def test_a_given_guide_is_checked(size, training):
    layer, input = DRConv2d(6, 4, 1, own_guide=False), images(size=size)
    guide = torch.randn(2, 8, *size)
    with torch.set_grad_enabled(training):
        for wrong in (guide.double(), guide.half()):
            with pytest.raises(TypeError, match=f"guide is {wrong.dtype} and input is torch.float32"):
                layer(input, wrong)
        with pytest.raises(TypeError, match="guide must be floating point, got torch.int64"):
            layer(input, guide.long())
        with pytest.raises(ValueError, match="guide is on meta"):
            layer(input, guide.to("meta"))
        with torch.autocast(input.device.type, torch.bfloat16):
            assert layer(input, guide.double()).dtype is torch.bfloat16  # as the operator casts it


class TestLife:
    """What frameworks do to a layer."""

    @pytest.mark.parametrize("generator", KINDS)
    @pytest.mark.parametrize("batch", [1, 2])
    def test_three_steps_change_every_parameter(self, generator, batch):
        module = nn.Sequential(DRConv2d(6, 8, 3, generator=generator), nn.BatchNorm2d(8), nn.ReLU())
        before = copy.deepcopy(module.state_dict())
        train(module, 3, images(batch))
        for name, parameter in module.named_parameters():
            assert not torch.equal(parameter, before[name]), name

    @pytest.mark.parametrize("generator", KINDS)
    def test_a_loaded_layer_changes_every_parameter(self, generator):
        layer = DRConv2d(6, 8, 3, generator=generator)
        layer.load_state_dict(nn.Conv2d(6, 8, 3).state_dict())
        before = copy.deepcopy(layer.state_dict())
        train(layer, 3)
        for name, parameter in layer.named_parameters():
            assert not torch.equal(parameter, before[name]), name

    def test_copy_pickle_and_state_dict(self):
        layer, input = DRConv2d(6, 8, 3, padding=1), images()
        fresh = DRConv2d(6, 8, 3, padding=1)
        fresh.load_state_dict(layer.state_dict())
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), fresh):
            torch.testing.assert_close(twin(input), layer(input), rtol=0, atol=0)

    def test_a_fallback_of_the_conv_type_pickles_too(self):
        from drconv_mm import DRConv

        for channels in (3, 8):
            layer = DRConv(channels, 8, 3)
            twin = copy.deepcopy(pickle.loads(pickle.dumps(layer)))
            input = images(c=channels)
            torch.testing.assert_close(twin(input), layer(input))

    def test_checkpoint_file_is_read_with_weights_only(self):
        layer, buffer = DRConv2d(6, 8, 3), io.BytesIO()
        torch.save(layer.state_dict(), buffer)
        buffer.seek(0)
        DRConv2d(6, 8, 3).load_state_dict(torch.load(buffer, weights_only=True))

    def test_ema(self):
        layer = DRConv2d(6, 8, 3)
        ema = ExponentialMovingAverage(layer, momentum=0.5)
        start = layer.guide_weight.detach().clone()
        train(layer, 1)
        ema.update_parameters(layer)
        train(layer, 1)
        ema.update_parameters(layer)
        assert not torch.equal(ema.module.guide_weight, start)
        assert not torch.equal(ema.module.guide_weight, layer.guide_weight)

    def test_activation_checkpointing_gives_the_same_gradients(self):
        layer, input = DRConv2d(6, 8, 3), images().requires_grad_()
        grads = []
        for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
            layer.zero_grad()
            run(input).square().sum().backward()
            grads.append([p.grad.clone() for p in layer.parameters()])
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b)

    def test_frozen_stages_norm_eval_and_with_cp_of_a_resnet(self):
        from mmdet.models.backbones import ResNet

        net = ResNet(
            18,
            frozen_stages=1,
            norm_eval=True,
            with_cp=True,
            conv_cfg=dict(type="drconv_mm.DRConv", apply_to=dict(max_filter_numel=10**6)),
        )
        net.init_weights()
        net.train()
        assert not any(p.requires_grad for p in net.layer1.parameters())
        sum(y.square().mean() for y in net(torch.randn(1, 3, 32, 32, requires_grad=True))).backward()
        moved = [m for m in net.layer2.modules() if isinstance(m, DRConv2d)]
        assert moved and all(p.grad is not None for m in moved for p in m.parameters())

    def test_sync_bn_conversion_keeps_the_layer(self):
        module = nn.Sequential(DRConv2d(6, 8, 3), nn.BatchNorm2d(8))
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        module = revert_sync_batchnorm(module)
        assert isinstance(module[0], DRConv2d)
        module(images())

    def test_parents_init_cfg_does_not_reach_inside(self):
        from mmengine.model import BaseModule

        class Parent(BaseModule):
            def __init__(self):
                super().__init__(init_cfg=[dict(type="Constant", layer=["Conv2d", "Linear"], val=7.0)])
                self.plain, self.dynamic = nn.Conv2d(6, 8, 1), DRConv2d(6, 8, 1)

        parent = Parent()
        parent.init_weights()
        assert (parent.plain.weight == 7).all()
        assert not any((p == 7).any() for p in parent.dynamic.parameters())

    @pytest.mark.parametrize("converted", [False, True])
    def test_biases_start_as_init_cfg_has_them(self, converted):
        """A prior where the layer is named, else zero, even where the bias of a converted convolution was random."""
        from mmengine.model import BaseModule

        class Head(BaseModule):
            def __init__(self):
                prior = dict(type="Normal", name="cls", std=0.01, bias_prob=0.01)
                super().__init__(init_cfg=dict(type="Normal", layer="Conv2d", std=0.01, override=prior))
                self.cls, self.reg = ((nn.Conv2d if converted else DRConv2d)(6, 8, 3) for _ in range(2))

        head = Head()
        if converted:
            convert(head)
        assert isinstance(head.reg, DRConv2d) and bool(head.reg.bias.any()) == converted
        head.init_weights()
        torch.testing.assert_close(head.cls.bias.sigmoid(), torch.full((8,), 0.01))
        assert not head.reg.bias.any()

    @pytest.mark.parametrize("generator", KINDS)
    def test_channels_last(self, generator):
        layer, input = DRConv2d(6, 8, 3, generator=generator), images().contiguous(memory_format=torch.channels_last)
        expected, parameters = layer(input), list(layer.parameters())

        def filters():  # of a 1x1 kernel the strides say nothing
            found = (p for name, p in layer.named_parameters() if name != "guide_weight")
            return [p.stride() for p in found if p.dim() > 3 and p.shape[-1] > 1]

        strides = filters()
        expected.sum().backward()  # gradients are converted as well
        assert layer.to(memory_format=torch.channels_last) is layer
        assert filters() == strides
        assert all(p is q for p, q in zip(layer.parameters(), parameters, strict=True)), "an optimizer's"
        torch.testing.assert_close(layer(input), expected)
        train(layer, 1, input)
        fresh = DRConv2d(6, 8, 3, generator=generator)
        fresh.load_state_dict(layer.state_dict())
        torch.testing.assert_close(fresh(input), layer(input))
        assert layer.double().to(memory_format=torch.channels_last)(input.double()).dtype is torch.float64

    def test_meta_device(self):
        layer, input = DRConv2d(6, 8, 3, device="meta"), torch.empty(1, 6, 19, 19, device="meta")
        assert layer(input).shape == (1, 8, 17, 17)
        assert layer(input[..., :9, :9]).shape == (1, 8, 7, 7)

    @pytest.mark.parametrize("generator", KINDS)
    def test_an_export_takes_any_batch(self, generator):
        layer = DRConv2d(6, 8, 3, generator=generator).eval()
        batch = torch.export.Dim("batch", max=64)
        program = torch.export.export(layer, (images(),), dynamic_shapes=({0: batch},))
        input = images(5)
        torch.testing.assert_close(program.module()(input), layer(input))

    def test_bfloat16_autocast_trains(self):
        layer = DRConv2d(6, 8, 3)
        with torch.autocast(layer.bias.device.type, torch.bfloat16):
            output = layer(images())
        assert output.dtype is torch.bfloat16
        output.float().square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())

    def test_compiles_as_one_graph(self):
        layer = DRConv2d(6, 8, 3, padding=1)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        input = images()
        torch.testing.assert_close(compiled(input), layer(input))

    def test_empty_batch(self):
        for generator in KINDS:
            assert DRConv2d(6, 8, 3, generator=generator)(images(0)).shape == (0, 8, 15, 12)


def test_geometry_changed_after_building_is_that_of_a_convolution():
    # mmseg's MobileNetV3 does so to the layers of its last stages.
    plain, layer = nn.Conv2d(6, 8, 3, stride=2, padding=1), DRConv2d(6, 8, 3, stride=2, padding=1)
    input = images()
    for conv in (plain, layer):
        conv.stride, conv.dilation, conv.padding = (1, 1), (2, 2), (2, 2)
    layer.load_state_dict(plain.state_dict())
    torch.testing.assert_close(layer(input), plain(input))


class TestErrors:
    @pytest.mark.parametrize(
        "arguments, match",
        [
            (dict(num_regions=0), "num_regions must be an integer of at least 1, got 0"),
            (dict(num_regions=2.0), "num_regions must be an integer of at least 1, got 2.0"),
            (dict(groups=4), "groups=4 must divide in_channels=6 and out_channels=8"),
            (dict(guide_kernel_size=3, own_guide=False), r"guide_kernel_size=3 is of a layer's own guide"),
            (dict(generator="mixtures"), r"generator='mixtures' is not known; choose one of .* did you mean 'mixture'"),
            (dict(generator=dict(type="pooled", num_kernels=4)), "generator 'pooled' does not take"),
            (dict(generator=dict(num_kernels=0)), "num_kernels must be an integer of at least 1, got 0"),
            (dict(padding="full"), "padding must be"),
            (dict(padding="same", stride=2), "padding='same' needs stride 1"),
            (dict(padding_mode="mirror"), "padding_mode='mirror' is not known"),
            (dict(stride=None), "stride must be an integer of at least 1, or a pair of them, got None"),
            (dict(guide_grad_scale="1.0"), "guide_grad_scale must be a number, got '1.0'"),
            (dict(guide_kernel_size=0), "guide_kernel_size must be an integer of at least 1"),
        ],
    )
    def test_arguments(self, arguments, match):
        with pytest.raises(ValueError, match=match):
            DRConv2d(6, 8, 3, **arguments)

    def test_input(self):
        with pytest.raises(ValueError, match=r"input must be \[N, C=6, H, W\].*unsqueeze\(0\)"):
            DRConv2d(6, 8, 3)(images()[0])
        with pytest.raises(TypeError, match="input is torch.float64 and the layer's parameters are torch.float32"):
            DRConv2d(6, 8, 3)(images().double())
        with pytest.raises(ValueError, match=r"input must be \[N, C=6, H, W\], got shape \(2, 5"):
            DRConv2d(6, 8, 3)(images(c=5))

    def test_the_missing_weight_explains_itself(self):
        layer = DRConv2d(6, 8, 3)
        assert not hasattr(layer, "weight")
        with pytest.raises(AttributeError, match="DRConv2d has no `weight`.*would drop the dynamic part"):
            _ = layer.weight

    def test_conv_bn_fusion_skips_it(self):
        from mmcv.cnn import fuse_conv_bn

        module = nn.Sequential(DRConv2d(6, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)).eval()
        module[1].running_mean.normal_()
        input = images()
        expected = module(input)
        fused = fuse_conv_bn(copy.deepcopy(module))
        assert isinstance(fused[0], DRConv2d) and isinstance(fused[1], nn.BatchNorm2d)
        torch.testing.assert_close(fused(input), expected, rtol=1e-4, atol=1e-5)

    def test_repvgg_deploy_says_so(self):
        from mmpretrain.models.backbones.repvgg import RepVGGBlock

        block = RepVGGBlock(8, 8, conv_cfg=dict(type="drconv_mm.DRConv")).eval()
        with pytest.raises(AttributeError, match="would drop the dynamic part"):
            block.switch_to_deploy()


def test_a_third_generator_is_one_class():
    @register_generator("static_only")
    class StaticOnly(FilterGenerator):
        linear_in = "shift"
        gain = 3.0

        def __init__(self, in_channels, filter_shape, num_regions):
            super().__init__(in_channels, filter_shape, num_regions)
            self.shift = nn.Parameter(torch.empty(1, num_regions, *filter_shape))

        def reset_parameters(self, std):
            nn.init.normal_(self.shift, std=std)

        def dynamic(self, input):
            return self.shift

    try:
        layer, plain, input = DRConv2d(6, 8, 3, generator="static_only"), nn.Conv2d(6, 8, 3), images()
        layer.load_state_dict(plain.state_dict())
        torch.testing.assert_close(layer(input), plain(input), rtol=1e-5, atol=1e-6)
        nn.init.normal_(layer.generator.shift)
        expected = layer.static_weight + StaticOnly.gain * layer.generator.shift
        torch.testing.assert_close(layer.generate_filters(input), expected)
        train(layer, 3)
        with pytest.raises(ValueError, match="registered already"):
            register_generator("mixture")(StaticOnly)
    finally:
        del GENERATORS["static_only"]
