"""One matrix product a sample for all its banks at all positions: m times the work, and next to no calls.

Where each sample has filters of its own and a small picture, sorting its pixels costs more than computing them m times.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from ..geometry import Geometry
from .common import bank_matrices, is_pixelwise, of_own_region, patches, pick, region_map, wide_dtype

# Numbers that the product of a few samples may give: it is read again at once, from a CPU's cache.
_CHUNK_NUMEL = 1 << 20
# How many times as many on a GPU, where small calls are dear: 256 MB of answers in fp32, beside their patches.
_ON_GPU = 64


def why_not(device: torch.device) -> str | None:
    """Stock matrix products run anywhere."""
    return None


def _samples(input: torch.Tensor, numel: int) -> Iterator[slice]:
    """The batch in slices, for ``numel`` numbers a sample."""
    batch, limit = len(input), _CHUNK_NUMEL * (1 if input.device.type == "cpu" else _ON_GPU)
    step = max(1, limit // max(1, numel))
    return (slice(n, min(n + step, batch)) for n in range(0, batch, step))


def _of(samples: slice, tensor: torch.Tensor) -> torch.Tensor:
    """The slice of what each sample has, or what all of them share."""
    return tensor[samples] if tensor.shape[0] > 1 else tensor


def forward(input: torch.Tensor, filters: torch.Tensor, guide: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """See `Backend`."""
    regions = region_map(guide)
    num_regions, out_channels = filters.shape[1:3]
    matrices, positions = bank_matrices(filters, geometry.groups), regions[0].numel()
    output = input.new_empty(input.shape[0], out_channels, *regions.shape[1:])
    for samples in _samples(input, num_regions * out_channels * positions):
        columns = patches(input[samples], filters.shape[-2:], geometry)
        output[samples] = of_own_region(_of(samples, matrices) @ columns, regions[samples], num_regions)
    return output


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
    regions = region_map(guide)
    want_input, want_filters, want_response = wanted
    groups, (num_regions, out_channels), kernel_size = geometry.groups, filters.shape[1:3], filters.shape[-2:]
    matrices, positions, wide = bank_matrices(filters, groups), regions[0].numel(), wide_dtype(input.dtype)
    banks = torch.arange(num_regions, device=input.device).view(-1, 1, 1)
    grad_input = torch.empty_like(input) if want_input else None
    # Samples that share filters add up: in fp32 at least, whatever the images' precision.
    grad_matrices = torch.zeros_like(matrices, dtype=wide) if want_filters else None
    response = torch.empty(len(input), num_regions, *regions.shape[1:], device=input.device, dtype=wide)
    for samples in _samples(input, num_regions * out_channels * positions):
        columns = patches(input[samples], kernel_size, geometry)
        # [n, groups, 1, O/groups, Ho * Wo]
        grads = grad_output[samples].flatten(2).unflatten(1, (groups, 1, -1))
        matrix = _of(samples, matrices)
        if want_response:
            answers = (matrix @ columns).unflatten(2, (num_regions, -1))
            # Widened before the product, which may be beyond fp16.
            response[samples] = (answers.to(wide) * grads).sum((1, 3)).view(response[samples].shape)
        if want_input or want_filters:
            here = regions[samples].flatten(1)[:, None, None, None] == banks
            chosen = torch.where(here, grads, 0).flatten(2, 3)  # not their product: an infinite gradient is of one bank
            if want_input:
                grad_columns = (matrix.mT @ chosen).flatten(1, 2)
                if is_pixelwise(kernel_size, geometry):
                    grad_input[samples] = grad_columns.view(input[samples].shape)
                else:
                    grad_input[samples] = F.fold(
                        grad_columns,
                        input.shape[-2:],
                        kernel_size,
                        geometry.dilation,
                        geometry.padding,
                        geometry.stride,
                    )
            if want_filters:
                parts = chosen @ columns.mT
                if filters.shape[0] > 1:
                    grad_matrices[samples] = parts.to(wide)
                else:
                    grad_matrices += parts.sum(0, dtype=wide)
    if want_filters:
        grad_filters = grad_matrices.unflatten(2, (num_regions, -1)).transpose(1, 2).reshape(filters.shape)
    return (
        grad_input,
        grad_filters.to(filters.dtype) if want_filters else None,
        pick(response, candidates) if want_response else None,
    )
