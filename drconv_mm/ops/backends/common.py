"""What several backends share."""

from __future__ import annotations

import torch


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums over many positions are kept in: fp32 at least, whatever the images' precision."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def pick(response: torch.Tensor, candidates: torch.Tensor | None) -> torch.Tensor:
    """Of a response [N, m, Ho, Wo], that of the candidates [N, k, Ho, Wo] at each position; None for all."""
    return response if candidates is None else response.gather(1, candidates)
