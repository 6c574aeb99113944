"""A mixture's outputs, mixed: the same function and gradients as the operator on generated filters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from drconv_mm import DRConv2d
from drconv_mm.layers import drconv, observe_regions, register_generator
from drconv_mm.layers.generators import GENERATORS, MixtureGenerator
from drconv_mm.layers.mix_outputs import mixing_outputs_pays

GEOMETRIES = [
    dict(kernel_size=1),
    dict(kernel_size=1, stride=2),
    dict(kernel_size=3, padding=1),
    dict(kernel_size=3, stride=(2, 1), padding=(1, 2)),
    dict(kernel_size=(3, 5), padding=(0, 2), dilation=(2, 1)),
    dict(kernel_size=(2, 3), padding="same"),
    dict(kernel_size=3, padding=1, padding_mode="reflect", guide_kernel_size=1),
]
GUIDES = [
    dict(),
    dict(guide_grad="topk", guide_topk=1),
    dict(guide_grad="topk", guide_topk=3, guide_grad_scale=0.5),
    dict(guide_grad="none"),
    dict(guide_grad_scale=0.0),
]


@pytest.fixture
def taken(monkeypatch):
    """The calls of `mix_outputs` that layers make."""
    calls, original = [], drconv.mix_outputs

    def counted(*args):
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(drconv, "mix_outputs", counted)
    return calls


def both_ways(layer, input, taken, monkeypatch, guide=None):
    """Output and gradients by `mix_outputs`, and by the operator's oracle on generated filters."""
    results = []
    monkeypatch.setenv("DRCONV_MM_BACKEND", "reference")
    for mixed in (True, False):
        if not mixed:
            monkeypatch.setattr(drconv, "mixing_outputs_pays", lambda *args: False)
        del taken[:]
        layer.zero_grad()
        inputs = [input.detach().clone().requires_grad_()] + ([] if guide is None else [guide.clone().requires_grad_()])
        output = layer(*inputs)
        assert len(taken) == mixed
        (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)).sum().backward()
        grads = [i.grad for i in inputs] + [p.grad for p in layer.parameters()]
        results.append((output.detach(), *grads))
    return results


def assert_same(results, **tolerances):
    for mixed, filters in zip(*results, strict=True):
        torch.testing.assert_close(mixed, filters, **tolerances)


@pytest.mark.parametrize("guide", GUIDES, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_same_function_and_gradients(geometry, guide, taken, monkeypatch):
    layer = DRConv2d(5, 6, **geometry, **guide, dtype=torch.float64)
    assert_same(both_ways(layer, torch.randn(3, 5, 7, 6, dtype=torch.float64), taken, monkeypatch))


@pytest.mark.parametrize("options", [
    dict(generator=dict(type="mixture", static=False)), dict(generator=dict(type="mixture", num_kernels=3)),
    dict(num_regions=2), dict(num_regions=1), dict(bias=False),
], ids=str)  # fmt: skip
def test_same_with_other_layers(options, taken, monkeypatch):
    layer = DRConv2d(5, 6, 3, padding=1, dtype=torch.float64, **options)
    assert_same(both_ways(layer, torch.randn(2, 5, 2, 3, dtype=torch.float64), taken, monkeypatch))


@pytest.mark.parametrize("batch", [0, 1])
def test_same_with_few_images(batch, taken, monkeypatch):
    layer = DRConv2d(5, 6, 3, padding=1, dtype=torch.float64)
    assert_same(both_ways(layer, torch.randn(batch, 5, 4, 4, dtype=torch.float64), taken, monkeypatch))


def test_ties_and_an_unused_region(taken, monkeypatch):
    layer = DRConv2d(5, 6, 1, own_guide=False, num_regions=4, dtype=torch.float64)
    guide = torch.randint(3, (2, 4, 4, 3)).double()
    guide[:, 3] = -1
    assert_same(both_ways(layer, torch.randn(2, 5, 4, 3, dtype=torch.float64), taken, monkeypatch, guide))


def test_an_infinite_score_is_a_choice_as_well(taken):
    layer = DRConv2d(5, 6, 1, own_guide=False, num_regions=4)
    guide = torch.randn(2, 4, 4, 3)
    guide[:, 2] = float("inf")
    assert layer(torch.randn(2, 5, 4, 3), guide).isfinite().all() and taken


def test_half_precision_and_autocast(taken):
    layer, input = DRConv2d(16, 8, 3, padding=1, own_guide=False), torch.randn(2, 16, 5, 4)
    guide = torch.randn(2, 8, 5, 4)
    expected = layer(input, guide)
    del taken[:]
    with torch.autocast(input.device.type, torch.bfloat16):
        output = layer(input, guide)
    assert output.dtype is torch.bfloat16 and len(taken) == 1
    torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.05)
    layer.bfloat16()
    output = layer(input.bfloat16(), guide)
    assert output.dtype is torch.bfloat16 and len(taken) == 2
    torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.05)
    output.sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_memory_format_is_the_inputs(taken):
    layer, input = DRConv2d(5, 6, 3), torch.randn(2, 5, 6, 7)
    assert layer(input).is_contiguous()
    assert layer(input.contiguous(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)
    assert len(taken) == 2


def test_observed_regions_are_used(taken):
    model = nn.Sequential(DRConv2d(5, 6, 1, num_regions=8))
    input = torch.randn(2, 5, 4, 4)
    with observe_regions(model, lambda name, regions, m: torch.full_like(regions, 5)):
        mixed = model(input)
        assert taken
        with torch.no_grad():
            torch.testing.assert_close(model(input), mixed)


def test_compiles_as_one_graph(taken):
    layer, input = DRConv2d(5, 6, 3, padding=1), torch.randn(2, 5, 4, 4)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results = []
    for run in (layer, compiled):
        layer.zero_grad()
        output = run(input)
        output.square().sum().backward()
        results.append((output.detach(), *(p.grad for p in layer.parameters())))
    assert len(taken) > 0
    assert_same(results)


def test_no_second_derivative():
    layer, input = DRConv2d(5, 6, 1), torch.randn(2, 5, 4, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(input).square().sum(), input, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("num_regions", "pixels", "pays"), [(8, 64, True), (8, 65, False), (1, 8, True), (1, 9, False), (2, 16, True)]
)
def test_small_maps_only(num_regions, pixels, pays, taken):
    assert mixing_outputs_pays(num_regions, 8, pixels) is pays
    DRConv2d(5, 6, 1, num_regions=num_regions)(torch.randn(2, 5, 1, pixels))
    assert len(taken) == pays


class TestTheOperatorIsTaken:
    def test_for_inference_groups_and_other_generators(self, taken):
        input = torch.randn(2, 6, 4, 4)
        with torch.no_grad():
            DRConv2d(6, 6, 1)(input)
        DRConv2d(6, 6, 1, groups=2)(input)
        DRConv2d(6, 6, 1, generator="pooled")(input)
        assert not taken

    def test_for_a_generator_derived_from_the_mixture(self, taken):
        @register_generator("test_derived")
        class Derived(MixtureGenerator):
            def forward(self, input, static):
                return super().forward(input, static) + 1

        try:
            DRConv2d(6, 6, 1, generator="test_derived")(torch.randn(2, 6, 4, 4))
        finally:
            del GENERATORS["test_derived"]
        assert not taken

    def test_in_an_exported_program(self, taken):
        layer = DRConv2d(6, 6, 1).eval()
        program = torch.export.export(layer, (torch.randn(2, 6, 4, 4),))
        assert "drconv_mm.region_conv2d" in str(program.graph) and not taken

    def test_in_a_traced_program(self, taken):
        traced = torch.jit.trace(DRConv2d(6, 6, 1), torch.randn(2, 6, 4, 4), check_trace=False)
        assert "drconv_mm::region_conv2d" in str(traced.inlined_graph) and not taken

    def test_for_a_guide_that_does_not_fit(self, taken):
        layer = DRConv2d(6, 6, 1, own_guide=False)
        with pytest.raises(ValueError, match="guide must have one channel a region, m=8"):
            layer(torch.randn(2, 6, 4, 4), torch.randn(2, 5, 4, 4))
        assert not taken
