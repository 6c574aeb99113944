"""What several backends share."""

from __future__ import annotations

import torch


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums over many positions are kept in: fp32 at least, whatever the images' precision."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def pick(response: torch.Tensor, candidates: torch.Tensor | None) -> torch.Tensor:
    """Of a response [N, m, Ho, Wo], that of the candidates [N, k, Ho, Wo] at each position; None for all."""
    return response if candidates is None else response.gather(1, candidates)


def region_map(guide: torch.Tensor) -> torch.Tensor:
    """The region ``[N, Ho, Wo]`` (int64) of each pixel of a guide ``[N, m, Ho, Wo]``; ties go to the lowest index."""
    return guide.max(1).indices  # documented to be the first maximum, as argmax, and much faster on a CPU
