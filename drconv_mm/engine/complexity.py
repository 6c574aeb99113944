"""Multiply-adds and parameters of a model with DRConv, over mmengine's analysis."""

from __future__ import annotations

import warnings
from math import prod

import torch
from mmengine.analysis import FlopAnalyzer
from torch import nn


def _region_conv_multiply_adds(inputs: list, outputs: list) -> int:
    """The handle: values of the traced graph, whose types know the shapes."""
    filters, output = inputs[1].type().sizes(), outputs[0].type().sizes()
    return prod(output) * prod(filters[3:])


def count_multiply_adds(model: nn.Module, shape: tuple[int, int], channels: int = 3) -> tuple[int, int]:
    """Multiply-adds of one image through ``model.forward`` in its tensor mode, and the number of parameters.

    Args:
        model: Any module; of the toolboxes' models the part that takes a tensor (backbone, neck, head's convolutions).
        shape: (height, width) of the image, pixels.
        channels: Channels of the image.

    Returns:
        (multiply-adds, parameters).
    """
    image = torch.zeros(1, channels, *shape, device=next(model.parameters()).device)
    training = model.training
    analyzer = FlopAnalyzer(model.eval(), image)
    analyzer.set_op_handle("drconv_mm::region_conv2d", _region_conv_multiply_adds)
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        total = int(analyzer.total())
    model.train(training)
    return total, sum(parameter.numel() for parameter in model.parameters())
