"""Multiply-adds and parameters of a model with DRConv, by part, over mmengine's analysis."""

from __future__ import annotations

import warnings
from collections import Counter
from math import prod
from typing import NamedTuple

import torch
from mmengine.analysis import FlopAnalyzer
from torch import nn

from ..layers.drconv import DRConv2d
from ..layers.generators import FilterGenerator

# What papers count: convolutions and linear layers. The rest (norms, which fold away, pooling, resizing) is apart.
PARTS = ("convolution", "guide", "generator", "linear")


class Cost(NamedTuple):
    """Of one image: multiply-adds; and the parameters."""

    multiply_adds: int
    parameters: int


def _region_conv_multiply_adds(inputs: list, outputs: list) -> int:
    """The handle: values of the traced graph, whose types know the shapes."""
    filters, output = inputs[1].type().sizes(), outputs[0].type().sizes()
    return prod(output) * prod(filters[3:])


def _baddbmm_multiply_adds(inputs: list, outputs: list) -> int:
    """A handle that mmengine has for ``bmm`` and ``addmm`` alone."""
    return prod(outputs[0].type().sizes()) * inputs[1].type().sizes()[-1]


def count_by_part(model: nn.Module, shape: tuple[int, int], channels: int = 3) -> dict[str, Cost]:
    """Cost of one image through ``model.forward`` in its tensor mode.

    Args:
        model: Any module; of the toolboxes' models the part that takes a tensor (backbone, neck, head's convolutions).
        shape: (height, width) of the image, pixels.
        channels: Channels of the image.

    Returns:
        The cost of each of `PARTS`, of ``'other'`` (norms, pooling, resizing), and ``'total'``: the multiply-adds of
        `PARTS`, and all parameters.
    """
    image = torch.zeros(1, channels, *shape, device=next(model.parameters()).device)
    training = model.training
    analyzer = FlopAnalyzer(model.eval(), image)
    analyzer.set_op_handle("drconv_mm::region_conv2d", _region_conv_multiply_adds)
    analyzer.set_op_handle("aten::baddbmm", _baddbmm_multiply_adds)
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        by_module = analyzer.by_module_and_operator()
    model.train(training)
    modules = dict(model.named_modules())
    all_operators = by_module[""]
    generators = sum((by_module[n] for n, m in modules.items() if isinstance(m, FilterGenerator)), Counter())
    # A guide's convolution runs in the module that owns its weight; only a generator lies below that.
    guide = sum(by_module[n]["conv"] for n, m in modules.items() if "guide_weight" in m._parameters) - sum(
        by_module[f"{n}.generator".lstrip(".")]["conv"] for n, m in modules.items() if _has_own_guide(m)
    )
    multiply_adds = {
        "convolution": all_operators["conv"] + all_operators["region_conv2d"] - guide - generators["conv"],
        "guide": guide,
        "generator": generators["conv"] + _products(generators),
        "linear": _products(all_operators) - _products(generators),
    }
    multiply_adds["other"] = all_operators.total() - sum(multiply_adds.values())
    parameters = _parameters(modules)
    costs = {part: Cost(int(multiply_adds[part]), parameters[part]) for part in (*PARTS, "other")}
    costs["total"] = Cost(sum(costs[part].multiply_adds for part in PARTS), parameters.total())
    return costs


def _products(operators: Counter) -> int:
    return sum(operators[kind] for kind in ("linear", "matmul", "bmm", "mm", "addmm", "baddbmm", "einsum"))


def _has_own_guide(module: nn.Module) -> bool:
    return isinstance(module, DRConv2d) and module.guide_weight is not None


def _parameters(modules: dict[str, nn.Module]) -> Counter:
    """Numbers by part; each parameter once, however many modules share it."""
    counts, seen = Counter(), set()
    for module in modules.values():
        for name, parameter in module._parameters.items():
            if parameter is None or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if name == "guide_weight":
                part = "guide"
            elif isinstance(module, FilterGenerator):
                part = "generator"
            elif isinstance(module, (DRConv2d, nn.modules.conv._ConvNd)):
                part = "convolution"
            else:
                part = "linear" if isinstance(module, nn.Linear) else "other"
            counts[part] += parameter.numel()
    return counts
