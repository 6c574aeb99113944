"""A mixture of filters the other way round: convolve with each base kernel, then mix the outputs.

``(sum_k a_k B_k) * x`` is ``sum_k a_k (B_k * x)``. Filters cost the same however few pixels they are for, and are made
for each image: m numbers an image and weight, written and read again several times in a training step, where the base
kernels are one dense convolution of all images. And training needs each region's answer at each pixel anyway, for the
guide's gradient. So a training step of a small map is several times as fast this way (docs/benchmarks.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.geometry import memory_format_of
from ..ops.guide_gradient import region_choice
from ..ops.region_conv import guide_candidates

# A generated number, with its gradient, takes as long as about so many multiply-adds of a dense convolution, with
# theirs; measured on a CPU by tools/benchmark_layer.py.
_GENERATED_NUMBER = 72


def mixing_outputs_pays(num_regions: int, num_kernels: int, pixels: int) -> bool:
    """Whether this order is the faster one to train: with m = K = 8, on maps of up to 64 pixels."""
    return (num_kernels + 1) * pixels <= _GENERATED_NUMBER * num_regions


def mix_outputs(
    input: Tensor,
    kernels: Tensor,
    static: Tensor | None,
    mixing: Tensor,
    guide: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    guide_grad: str,
    guide_topk: int,
    guide_grad_scale: float,
) -> Tensor:
    """What `region_conv2d` gives for the filters ``static + sum_k mixing_jk kernels_k``, with all gradients.

    Args:
        input: ``[N, C, H, W]``.
        kernels: ``[K, O, C, kh, kw]``.
        static: ``[O, C, kh, kw]``, or None.
        mixing: ``[N, m, K]``.
        guide: ``[N, m, Ho, Wo]``.
        bias: ``[O]``, or None.
        stride: (vertical, horizontal).
        padding: (vertical, horizontal), zeros.
        dilation: (vertical, horizontal).
        guide_grad: As in `region_conv2d`, with the two that follow.
        guide_topk: k of ``guide_grad='topk'``.
        guide_grad_scale: Factor on the guide's gradient.

    Returns:
        ``[N, O, Ho, Wo]``, in input's memory format.
    """
    weight = kernels if static is None else torch.cat([kernels, static.unsqueeze(0)])
    outputs = F.conv2d(
        input.contiguous(memory_format=torch.channels_last), weight.flatten(0, 1), None, stride, padding, dilation
    )
    batch, _, height, width = outputs.shape
    outputs = outputs.permute(0, 2, 3, 1).reshape(batch * height * width, *weight.shape[:2])
    count = guide_candidates(guide_grad, guide_topk, guide_grad_scale, guide.shape[1])
    chosen = region_choice(guide, count, guide_grad_scale).flatten(2).transpose(1, 2)
    weights = (chosen @ mixing.to(chosen.dtype)).flatten(0, 1).unsqueeze(1)  # [N Ho Wo, 1, K]
    if static is not None:
        weights = F.pad(weights, (0, 1), value=1.0)
    mixed = torch.bmm(weights.to(outputs.dtype), outputs).view(batch, height, width, weight.shape[1])
    if bias is not None:
        mixed = mixed + bias.to(mixed.dtype)
    return mixed.permute(0, 3, 1, 2).contiguous(memory_format=memory_format_of(input))
