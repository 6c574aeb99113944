"""Multiply-adds and parameters of a model with DRConv, by part, over mmengine's analysis."""

from __future__ import annotations

import warnings
from collections import Counter
from math import prod
from typing import NamedTuple

import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.structures import InstanceData
from torch import nn

from ..layers.drconv import DRConv2d
from ..layers.generators import FilterGenerator

# What papers count: convolutions and linear layers. The rest (norms, which fold away, pooling, resizing) is apart.
PARTS = ("convolution", "guide", "generator", "linear")

_PRODUCTS = ("linear", "matmul", "bmm", "mm", "addmm", "baddbmm", "einsum", "scaled_dot_product_attention")

# mmcv's DCN and DCNv2, by the names that a trace gives them.
_DEFORMABLE = ("PythonOp.DeformConv2dFunction", "PythonOp.ModulatedDeformConv2dFunction")


class Cost(NamedTuple):
    """Of one image: multiply-adds; and the parameters."""

    multiply_adds: int
    parameters: int


def _region_conv_multiply_adds(inputs: list, outputs: list) -> int:
    """The handle: values of the traced graph, whose types know the shapes."""
    filters, output = inputs[1].type().sizes(), outputs[0].type().sizes()
    return prod(output) * prod(filters[3:])


def _deformable_multiply_adds(inputs: list, outputs: list) -> int:
    """A handle for mmcv's deformable convolutions, which are functions of Python; sampling counts as nothing."""
    weight = next(sizes for sizes in map(_sizes, reversed(inputs)) if sizes is not None and len(sizes) == 4)
    return prod(outputs[0].type().sizes()) * prod(weight[1:])


def _sizes(value: torch.Value) -> list[int] | None:
    return value.type().sizes() if value.isCompleteTensor() else None


def _baddbmm_multiply_adds(inputs: list, outputs: list) -> int:
    """A handle that mmengine has for ``bmm`` and ``addmm`` alone."""
    return prod(outputs[0].type().sizes()) * inputs[1].type().sizes()[-1]


def _attention_multiply_adds(inputs: list, outputs: list) -> int:
    """A handle for ``F.scaled_dot_product_attention``: queries times keys, and what comes of it times values."""
    (*rows, width), (*_, keys, _), (*_, value_width) = (_sizes(value) for value in inputs[:3])
    return prod(rows) * keys * (width + value_width)


def image_samples(model: nn.Module, count: int, shape: tuple[int, int]) -> list | None:
    """Data samples without objects, for a detector's forward in tensor mode.

    mmdet's two-stage detectors and DETRs read the size of each image there.

    Args:
        model: Any module.
        count: Images.
        shape: Their (height, width), pixels.

    Returns:
        ``count`` `DetDataSample`; None for a model that is no detector of mmdet's.
    """
    if not any(kind.__module__.startswith("mmdet.models.") for kind in type(model).__mro__):
        return None
    from mmdet.structures import DetDataSample

    size = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), tuple(shape))
    samples = [DetDataSample(metainfo=dict(size, scale_factor=(1.0, 1.0), img_id=index)) for index in range(count)]
    for sample in samples:
        sample.gt_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    return samples


def count_by_part(model: nn.Module, shape: tuple[int, int], channels: int = 3) -> dict[str, Cost]:
    """Cost of one image through ``model.forward`` in its tensor mode.

    Args:
        model: Any module; of the toolboxes' models the part that takes a tensor (backbone, neck, head's convolutions).
            A two-stage detector counts its second stage for the proposals of its RPN, however it is trained.
        shape: (height, width) of the image, pixels.
        channels: Channels of the image.

    Warns:
        UserWarning: An operator written in Python whose multiply-adds nobody knows.

    Returns:
        The cost of each of `PARTS`, of ``'other'`` (norms, pooling, resizing), and ``'total'``: the multiply-adds of
        `PARTS`, and all parameters.
    """
    image = torch.zeros(1, channels, *shape, device=next(model.parameters()).device)
    samples = image_samples(model, 1, shape)
    more = {} if samples is None else {"data_samples": samples}
    training = [module for module in model.modules() if module.training]
    analyzer = FlopAnalyzer(model.eval(), image)
    analyzer.set_op_handle("drconv_mm::region_conv2d", _region_conv_multiply_adds)
    analyzer.set_op_handle("aten::baddbmm", _baddbmm_multiply_adds)
    analyzer.set_op_handle("aten::scaled_dot_product_attention", _attention_multiply_adds)
    for name in _DEFORMABLE:
        analyzer.set_op_handle(f"prim::{name}", _deformable_multiply_adds)
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    # The analysis passes tensors alone.
    hook = model.register_forward_pre_hook(lambda _, args, kwargs: (args, kwargs | more), with_kwargs=True)
    with hook, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        try:
            by_module = analyzer.by_module_and_operator()
        finally:
            for module in training:  # each alone: a frozen norm stays in evaluation mode
                module.training = True
        unknown = sorted(
            name.split(".")[1] for name in analyzer.unsupported_ops() if name.startswith("prim::PythonOp.")
        )
    if unknown:
        warnings.warn(f"the multiply-adds of {', '.join(unknown)} are not known, and are counted as 0", stacklevel=2)
    modules = dict(model.named_modules())
    all_operators = by_module[""]
    generators = sum((by_module[n] for n, m in modules.items() if isinstance(m, FilterGenerator)), Counter())
    # A guide's convolution runs in the module that owns its weight; only a generator lies below that.
    guide = sum(by_module[n]["conv"] for n, m in modules.items() if "guide_weight" in m._parameters) - sum(
        by_module[f"{n}.generator".lstrip(".")]["conv"] for n, m in modules.items() if _has_own_guide(m)
    )
    multiply_adds = {
        "convolution": sum(all_operators[kind] for kind in ("conv", "region_conv2d", *_DEFORMABLE))
        - guide
        - generators["conv"],
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
    return sum(operators[kind] for kind in _PRODUCTS)


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
            elif isinstance(module, (DRConv2d, nn.modules.conv._ConvNd)) or hasattr(module, "deform_groups"):
                part = "convolution"
            else:
                part = "linear" if isinstance(module, (nn.Linear, nn.MultiheadAttention)) else "other"
            counts[part] += parameter.numel()
    return counts
