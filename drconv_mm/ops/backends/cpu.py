"""The compiled backend: pixels sorted by region, multiplied where they lie; the work and memory of one convolution."""

from __future__ import annotations

import torch

from .. import extension
from ..geometry import Geometry


def why_not(device: torch.device) -> str | None:
    """Why this backend can't run on ``device`` now, or None."""
    return extension.why_not() if device.type == "cpu" else "it is for the CPU alone"


def forward(input: torch.Tensor, filters: torch.Tensor, guide: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """See `Backend`."""
    return torch.ops.drconv_mm_cpu.forward(input, filters, guide, *geometry)


def backward(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    filters: torch.Tensor,
    guide: torch.Tensor,
    geometry: Geometry,
    wanted: tuple[bool, bool, bool],
    candidates: torch.Tensor | None,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """See `Backend`."""
    found = iter(torch.ops.drconv_mm_cpu.backward(grad_output, input, filters, guide, *geometry, *wanted, candidates))
    return tuple(next(found) if want else None for want in wanted)
