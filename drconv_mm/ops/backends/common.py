"""What several backends share."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..geometry import Geometry


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums over many positions are kept in: fp32 at least, whatever the images' precision."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def pick(response: torch.Tensor, candidates: torch.Tensor | None) -> torch.Tensor:
    """Of a response [N, m, Ho, Wo], that of the candidates [N, k, Ho, Wo] at each position; None for all."""
    return response if candidates is None else response.gather(1, candidates)


def region_map(guide: torch.Tensor) -> torch.Tensor:
    """The region ``[N, Ho, Wo]`` (int64) of each pixel of a guide ``[N, m, Ho, Wo]``; ties go to the lowest index."""
    return guide.max(1).indices  # documented to be the first maximum, as argmax, and much faster on a CPU


def patches(input: torch.Tensor, kernel_size: tuple[int, int], geometry: Geometry) -> torch.Tensor:
    """What the filters see at each position: ``[N, groups, C/groups * taps, Ho * Wo]``."""
    if is_pixelwise(kernel_size, geometry):
        columns = input.flatten(2)
    else:
        columns = F.unfold(input, kernel_size, geometry.dilation, geometry.padding, geometry.stride)
    return columns.unflatten(1, (geometry.groups, -1))


def is_pixelwise(kernel_size: tuple[int, int], geometry: Geometry) -> bool:
    """Whether an output's patch is the input's pixel at its place."""
    return kernel_size == geometry.stride == (1, 1) and geometry.padding == (0, 0)


def of_own_region(answers: torch.Tensor, regions: torch.Tensor, num_regions: int) -> torch.Tensor:
    """Of what every bank gives at every position, that of the position's region.

    Args:
        answers: ``[N, groups, m * O/groups, Ho * Wo]``: `bank_matrices` times `patches`.
        regions: ``[N, Ho, Wo]``, int64.
        num_regions: m.

    Returns:
        ``[N, O, Ho, Wo]``.
    """
    answers = answers.unflatten(2, (num_regions, -1))
    chosen = regions.flatten(1)[:, None, None, None].expand(*answers.shape[:2], 1, *answers.shape[3:])
    return answers.gather(2, chosen).flatten(1, 3).unflatten(2, regions.shape[1:])


def bank_matrices(filters: torch.Tensor, groups: int) -> torch.Tensor:
    """Filter banks as ``[N or 1, groups, m * O/groups, C/groups * taps]``: a group's rows lie together."""
    return filters.flatten(3).unflatten(2, (groups, -1)).transpose(1, 2).flatten(2, 3)
