"""All m convolutions, then a choice among them: m times the work, with stock convolutions alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..geometry import Geometry
from .common import pick, region_map, wide_dtype


def why_not(device: torch.device) -> str | None:
    """Stock convolutions run anywhere."""
    return None


class _Fold:
    """Folds a batch whose samples have filters of their own into the groups of one convolution."""

    def __init__(self, input: torch.Tensor, filters: torch.Tensor, geometry: Geometry):
        self.own = filters.shape[0] > 1
        self.batch = input.shape[0]
        self.groups = geometry.groups * (self.batch if self.own else 1)

    def images(self, images: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [1, N*C, H, W]."""
        return images.reshape(1, -1, *images.shape[2:]) if self.own else images

    def unfold(self, images: torch.Tensor) -> torch.Tensor:
        """[1, N*C, H, W] -> [N, C, H, W]."""
        return images.reshape(self.batch, -1, *images.shape[2:]) if self.own else images

    def bank(self, filters: torch.Tensor, j: int) -> torch.Tensor:
        """Filter bank j of every sample, as the weight of one convolution."""
        return filters[:, j].flatten(0, 1)


def forward(input: torch.Tensor, filters: torch.Tensor, guide: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """See `Backend`."""
    regions = region_map(guide)
    fold = _Fold(input, filters, geometry)
    images, (stride, padding, dilation, _) = fold.images(input), geometry
    output = None
    for j in range(filters.shape[1]):
        answer = fold.unfold(F.conv2d(images, fold.bank(filters, j), None, stride, padding, dilation, fold.groups))
        output = answer if output is None else torch.where((regions == j).unsqueeze(1), answer, output)
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
    fold = _Fold(input, filters, geometry)
    images, (stride, padding, dilation, _) = fold.images(input), geometry
    want_input, want_filters, want_response = wanted
    grad_input = None
    grad_filters = torch.empty_like(filters) if want_filters else None
    # The guide's gradient is computed in fp32 at least, whatever the images' precision.
    response = torch.empty(
        regions.shape[0], filters.shape[1], *regions.shape[1:], device=input.device, dtype=wide_dtype(input.dtype)
    )
    for j in range(filters.shape[1]):
        bank = fold.bank(filters, j)
        if want_input or want_filters:
            part = torch.where((regions == j).unsqueeze(1), grad_output, 0)
            grad_images, grad_bank, _ = torch.ops.aten.convolution_backward(
                *(fold.images(part), images, bank, None, stride, padding, dilation, False, (0, 0), fold.groups),
                (want_input, want_filters, False),
            )
            if want_input:
                grad_input = grad_images if grad_input is None else grad_input + grad_images
            if want_filters:
                grad_filters[:, j] = grad_bank.reshape(filters[:, j].shape)
        if want_response:
            answer = fold.unfold(F.conv2d(images, bank, None, stride, padding, dilation, fold.groups))
            response[:, j] = (answer.to(response.dtype) * grad_output).sum(1)
    return (
        fold.unfold(grad_input) if want_input else None,
        grad_filters,
        pick(response, candidates) if want_response else None,
    )
