"""The guide: a convolution whose channels are the regions' scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reset_guide_(weight: Tensor) -> None:
    """Fills a guide kernel ``[m, C, kh, kw]`` in place.

    It must be random: while all filters are equal its gradient is zero, and at zero every pixel ties into region 0.
    Each region's kernel sums to zero, since the features behind a ReLU share a positive mean, which would otherwise
    give most pixels to the region with the largest sum.
    """
    fan_in = weight[0].numel()
    with torch.no_grad():
        weight.normal_(0, fan_in**-0.5)
        if fan_in > 1:
            weight.sub_(weight.mean((1, 2, 3), keepdim=True))


def compute_guide(
    input: Tensor,
    weight: Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    pads: tuple[int, int, int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """The guide feature ``[N, m, Ho, Wo]``, on the grid of the convolution it guides.

    Args:
        input: ``[N, C, H, W]``.
        weight: Guide kernel ``[m, C, gh, gw]``, of any size.
        kernel_size: Kernel of the convolution that is guided.
        stride: Stride of both.
        pads: Zeros around the input of the convolution that is guided, (left, right, top, bottom).
        dilation: Dilation of both.
    """
    # A guide smaller than the convolution looks at the middle of its window.
    down, right = (d * (k - g) for d, k, g in zip(dilation, kernel_size, weight.shape[2:], strict=True))
    left, right, top, bottom = (
        pad - less
        for pad, less in zip(pads, (right // 2, right - right // 2, down // 2, down - down // 2), strict=True)
    )
    if left == right >= 0 and top == bottom >= 0:
        return F.conv2d(input, weight, None, stride, (top, left), dilation)
    return F.conv2d(F.pad(input, (left, right, top, bottom)), weight, None, stride, 0, dilation)


def resize_guide(guide: Tensor, size: tuple[int, int]) -> Tensor:
    """A guide shared by several layers, brought to ``size`` by nearest neighbour."""
    return guide if guide.shape[-2:] == size else F.interpolate(guide, size, mode="nearest")
