"""How argmax back-propagates: the gradient of the softmax that replaces the one-hot choice (DRConv, equations 3, 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .backends.common import region_map, wide_dtype


def most_likely(guide: Tensor, count: int) -> Tensor | None:
    """The regions ``[N, count, Ho, Wo]`` of highest score, stable: ties go to the lowest index, as in the region map.

    None where that is all of them.
    """
    if count >= guide.shape[1]:
        return None
    return guide.sort(dim=1, descending=True, stable=True).indices[:, :count]


def guide_gradient(guide: Tensor, response: Tensor, candidates: Tensor | None, scale: float) -> Tensor:
    """The guide's gradient ``[N, m, Ho, Wo]``, in ``response``'s dtype.

    Args:
        guide: ``[N, m, Ho, Wo]``.
        response: The gradient by the choice of each region, ``[N, m, Ho, Wo]``, or of each candidate, ``[N, k, ...]``.
        candidates: The regions that the softmax is over, ``[N, k, Ho, Wo]``; None for all.
        scale: Factor on it.
    """
    scores = guide.to(response.dtype)
    soft = (scores if candidates is None else scores.gather(1, candidates)).softmax(1)
    grad = torch.ops.aten._softmax_backward_data(response, soft, 1, soft.dtype)
    if scale != 1:
        grad = grad * scale
    return grad if candidates is None else torch.zeros_like(scores).scatter_(1, candidates, grad)


class _Choice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, guide: Tensor, count: int, scale: float) -> Tensor:
        ctx.save_for_backward(guide)
        ctx.count, ctx.scale = count, scale
        chosen = F.one_hot(region_map(guide), guide.shape[1]).permute(0, 3, 1, 2)
        return chosen.to(wide_dtype(guide.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, response: Tensor):
        (guide,) = ctx.saved_tensors
        if ctx.count < 2:  # one region has no choice to make
            return torch.zeros_like(guide), None, None
        some = most_likely(guide, ctx.count)
        response = response if some is None else response.gather(1, some)
        return guide_gradient(guide, response, some, ctx.scale).to(guide.dtype), None, None


def region_choice(guide: Tensor, count: int, scale: float = 1.0) -> Tensor:
    """The one-hot choice ``[N, m, Ho, Wo]``, in fp32 at least, whose gradient is that of the softmax.

    Args:
        guide: ``[N, m, Ho, Wo]``.
        count: Of how many regions the guide learns, from the most likely on (`guide_candidates`).
        scale: Factor on the guide's gradient.
    """
    return _Choice.apply(guide, count, scale)
