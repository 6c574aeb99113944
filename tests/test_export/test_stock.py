"""Programs in stock operations compute what the layer does."""

from __future__ import annotations

import pytest
import torch
from torch.export import Dim, export

from drconv_mm import DRConv2d, region_conv2d
from drconv_mm.export import onnx_runner, to_onnx, to_stock_operations
from drconv_mm.layers import observe_regions

LAYERS = {
    "3x3": dict(out_channels=8, kernel_size=3, padding=1),
    "odd": dict(out_channels=10, kernel_size=(3, 2), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
    "pointwise": dict(out_channels=5, kernel_size=1, bias=False),
    "strided pointwise": dict(out_channels=5, kernel_size=1, stride=2),
    "groups": dict(out_channels=9, kernel_size=3, groups=3),
    "depthwise": dict(out_channels=6, kernel_size=3, padding=1, groups=6),
    "same": dict(out_channels=4, kernel_size=2, padding="same"),
    "reflect": dict(out_channels=4, kernel_size=3, padding=1, padding_mode="reflect"),
    "one region": dict(out_channels=4, kernel_size=3, num_regions=1),
    "pooled": dict(out_channels=4, kernel_size=3, generator="pooled"),
    "topk": dict(out_channels=4, kernel_size=3, guide_grad="topk", num_regions=3),
}


def layer_of(name: str) -> DRConv2d:
    torch.manual_seed(0)
    layer = DRConv2d(6, **LAYERS[name]).eval()
    with torch.no_grad():  # regions that differ, which fresh ones hardly do
        for parameter in layer.generator.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return layer


def images(batch: int) -> torch.Tensor:
    return torch.randn(batch, 6, 13, 10)


def operators(program) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_of_one_size(name, batch):
    layer, input = layer_of(name), images(batch)
    program = export(layer, (input,))
    assert any("drconv_mm" in operator for operator in operators(program))
    stock = to_stock_operations(program)
    assert not any("drconv_mm" in operator for operator in operators(stock))
    assert not any("stack_trace" in node.meta for node in stock.graph.nodes)
    input = images(batch)
    expected = layer(input)
    torch.testing.assert_close(stock.module()(input), expected)
    with observe_regions(layer, lambda name, regions, num_regions: torch.zeros_like(regions)):
        assert layer.num_regions == 1 or not torch.allclose(layer(input), expected, atol=1e-3), "the map matters"


@pytest.mark.parametrize("name", LAYERS)
def test_of_any_batch(name):
    layer = layer_of(name)
    program = to_stock_operations(export(layer, (images(2),), dynamic_shapes=({0: Dim("batch")},)))
    for batch in (1, 5):
        input = images(batch)
        torch.testing.assert_close(program.module()(input), layer(input))


class Shared(torch.nn.Module):
    """The operator with filters that all samples share, and ties."""

    def forward(self, input, filters, guide):
        return region_conv2d(input, filters, guide.round(), padding=1)


@pytest.mark.parametrize("batch", [1, 2])
def test_filters_that_all_samples_share_and_ties(batch):
    arguments = torch.randn(batch, 4, 7, 6), torch.randn(1, 3, 5, 4, 3, 3), torch.randn(batch, 3, 7, 6)
    program = to_stock_operations(export(Shared(), arguments))
    torch.testing.assert_close(program.module()(*arguments), Shared()(*arguments))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    layer, input = layer_of("3x3").to(dtype), images(2).to(dtype)
    program = to_stock_operations(export(layer, (input,)))
    found, expected = program.module()(input), layer(input)
    assert found.dtype is dtype
    tolerance = {} if dtype is torch.float64 else dict(atol=3e-2, rtol=3e-2)
    torch.testing.assert_close(found, expected, **tolerance)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", ["odd", "groups", "pointwise", "pooled", "same", "one region"])
def test_onnx(name, dynamic):
    layer, batch = layer_of(name), 2 if dynamic else 1
    shapes = ({0: Dim("batch")},) if dynamic else None
    program = to_stock_operations(export(layer, (images(batch),), dynamic_shapes=shapes))
    model = to_onnx(program, {"key": "value"})
    assert b"stack_trace" not in model and b"site-packages" not in model
    run = onnx_runner(model)
    for batch in (1, 4) if dynamic else (1,):
        input = images(batch)
        (found,) = run(input)
        torch.testing.assert_close(found, layer(input), atol=1e-5, rtol=1e-4)
