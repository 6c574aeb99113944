"""The oracle: explicit loops over samples, output positions and regions, in the words of `region_conv2d`'s.

Slow on purpose. Every other backend is tested against it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..geometry import Geometry
from .common import pick, region_map


def why_not(device: torch.device) -> str | None:
    """The loops run anywhere."""
    return None


def _pad(input: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    vertical, horizontal = geometry.padding
    return F.pad(input, (horizontal, horizontal, vertical, vertical))


def _window(padded: torch.Tensor, row: int, column: int, kernel_size: tuple[int, int], geometry: Geometry):
    """The view [C, kh, kw] of one padded sample [C, H, W] that output position (row, column) looks at."""
    top, left = row * geometry.stride[0], column * geometry.stride[1]
    height, width = ((k - 1) * d + 1 for k, d in zip(kernel_size, geometry.dilation, strict=True))
    return padded[:, top : top + height : geometry.dilation[0], left : left + width : geometry.dilation[1]]


def _apply(bank: torch.Tensor, window: torch.Tensor, groups: int) -> torch.Tensor:
    """One filter bank [O, C/groups, kh, kw] applied to one window [C, kh, kw]: [O]."""
    patch = window.reshape(groups, -1)
    return torch.einsum("goi,gi->go", bank.reshape(groups, -1, patch.shape[1]), patch).reshape(-1)


def forward(input: torch.Tensor, filters: torch.Tensor, guide: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """See `Backend`."""
    regions = region_map(guide)
    padded = _pad(input, geometry)
    output = input.new_empty(input.shape[0], filters.shape[2], *regions.shape[1:])
    for n in range(input.shape[0]):
        banks = filters[n if filters.shape[0] > 1 else 0]
        for row in range(regions.shape[1]):
            for column in range(regions.shape[2]):
                window = _window(padded[n], row, column, filters.shape[-2:], geometry)
                output[n, :, row, column] = _apply(banks[int(regions[n, row, column])], window, geometry.groups)
    return output


def backward(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    filters: torch.Tensor,
    guide: torch.Tensor,
    geometry: Geometry,
    wanted: tuple[bool, bool, bool],
    candidates: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `Backend`."""
    regions = region_map(guide)
    groups, num_regions = geometry.groups, filters.shape[1]
    padded = _pad(input, geometry)
    grad_padded = torch.zeros_like(padded)
    grad_filters = torch.zeros_like(filters)
    response = input.new_zeros(input.shape[0], num_regions, *regions.shape[1:])
    for n in range(input.shape[0]):
        shared = 0 if filters.shape[0] == 1 else n
        for row in range(regions.shape[1]):
            for column in range(regions.shape[2]):
                region = int(regions[n, row, column])
                grad = grad_output[n, :, row, column].reshape(groups, -1)
                window = _window(padded[n], row, column, filters.shape[-2:], geometry)
                bank = filters[shared, region].reshape(groups, grad.shape[1], -1)
                grad_window = torch.einsum("goi,go->gi", bank, grad).reshape(window.shape)
                _window(grad_padded[n], row, column, filters.shape[-2:], geometry).add_(grad_window)
                grad_bank = torch.einsum("go,gi->goi", grad, window.reshape(groups, -1))
                grad_filters[shared, region] += grad_bank.reshape(filters.shape[2:])
                for j in range(num_regions):
                    response[n, j, row, column] = (_apply(filters[shared, j], window, groups) * grad.reshape(-1)).sum()
    vertical, horizontal = geometry.padding
    height, width = input.shape[-2:]
    grad_input = grad_padded[:, :, vertical : vertical + height, horizontal : horizontal + width]
    return grad_input, grad_filters, pick(response, candidates)
