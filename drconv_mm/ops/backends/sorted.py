"""Pixels sorted by region, one matrix product a region: the work and memory of one convolution, in pure PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from ..geometry import Geometry
from .common import region_map, wide_dtype

# Numbers in the patches of one product: they stay in a CPU's cache, and the extra memory does not depend on m.
_CHUNK_NUMEL = 1 << 19
# Up to this many numbers PyTorch takes its own slow convolution in place of oneDNN's.
_ONEDNN_NUMEL = 20480


def why_not(device: torch.device) -> str | None:
    """Why this backend can't run on ``device`` now, or None."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return "it reads the regions' sizes on the host, which a CUDA graph capture forbids"
    return None


def _segments(regions: torch.Tensor, num_regions: int, own: bool) -> tuple[torch.Tensor, list[int]]:
    """Output positions in the order of their filter bank, and how many each bank has.

    Args:
        regions: [N, Ho, Wo], int64.
        num_regions: m.
        own: Whether each sample has filter banks of its own.
    """
    batch = regions.shape[0]
    keys = regions
    if own:
        keys = regions + num_regions * torch.arange(batch, device=regions.device).view(-1, 1, 1)
    keys = keys.flatten()
    counts = torch.bincount(keys, minlength=num_regions * (batch if own else 1))
    return torch.sort(keys, stable=True).indices, counts.tolist()


def _chunks(counts: list[int], rows: int) -> Iterator[tuple[int, slice]]:
    """(filter bank, slice of the sorted positions) with at most ``rows`` positions each."""
    start = 0
    for bank, count in enumerate(counts):
        stop = start + count
        # Even parts: a small rest would cost nearly as much as a whole one.
        for part in range(parts := -(-count // rows), 0, -1):
            end = stop - count * (part - 1) // parts
            yield bank, slice(start, end)
            start = end


def _product(rows: torch.Tensor, weight: torch.Tensor, groups: int) -> torch.Tensor:
    """[R, groups*I] times [groups*O, I] -> [R, groups*O], group by group."""
    if rows.is_cuda or rows.numel() <= _ONEDNN_NUMEL:
        # On a GPU the changing number of rows would make cuDNN search an algorithm for each.
        split = rows.view(len(rows), groups, -1).transpose(0, 1)
        return (split @ weight.view(groups, -1, weight.shape[1]).mT).transpose(0, 1).reshape(len(rows), -1)
    # As a 1x1 convolution of a channels_last picture: oneDNN's is up to twice as fast as the BLAS behind torch.mm.
    picture = rows.view(1, len(rows), 1, -1).permute(0, 3, 1, 2)
    return F.conv2d(picture, weight[:, :, None, None], groups=groups).permute(0, 2, 3, 1).reshape(len(rows), -1)


def _transposed(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """[groups*O, I] -> [groups*I, O], group by group."""
    return weight.view(groups, -1, weight.shape[1]).transpose(1, 2).reshape(-1, weight.shape[0] // groups)


class _Patches:
    """The input as rows of pixels, and where the window of each output position lies in them."""

    def __init__(self, input: torch.Tensor, kernel_size: tuple[int, int], geometry: Geometry, size: tuple[int, int]):
        vertical, horizontal = geometry.padding
        batch, self.channels, height, width = input.shape
        self.groups, self.taps = geometry.groups, kernel_size[0] * kernel_size[1]
        self.shape = (batch, height + 2 * vertical, width + 2 * horizontal, self.channels)
        self.inner = (slice(None), slice(vertical, vertical + height), slice(horizontal, horizontal + width))
        padded = input.permute(0, 2, 3, 1)
        if vertical or horizontal:
            padded = F.pad(padded, (0, 0, horizontal, horizontal, vertical, vertical))
        self.rows = padded.reshape(-1, self.channels)

        def grid(*axes: tuple[int, int]) -> torch.Tensor:
            # Row numbers of all combinations: for each axis (count, step).
            numbers = torch.zeros((), dtype=torch.int64, device=input.device)
            for count, step in axes:
                numbers = numbers.unsqueeze(-1) + torch.arange(count, device=input.device) * step
            return numbers.flatten()

        row, sample = self.shape[2], self.shape[1] * self.shape[2]
        (down, right), (apart_down, apart_right) = geometry.stride, geometry.dilation
        self.corners = grid((batch, sample), (size[0], row * down), (size[1], right))
        self.offsets = grid((kernel_size[0], row * apart_down), (kernel_size[1], apart_right))

    @property
    def width(self) -> int:
        """Numbers in one patch."""
        return self.taps * self.channels

    def places(self, corners: torch.Tensor) -> torch.Tensor:
        """Row numbers [R * taps] of the windows with these R corners."""
        return corners if self.taps == 1 else (corners.unsqueeze(1) + self.offsets).flatten()

    def gather(self, places: torch.Tensor) -> torch.Tensor:
        """Patches [R, groups * taps * C/groups] at these places."""
        patches = self.rows.index_select(0, places)
        if self.groups > 1:
            patches = patches.view(-1, self.taps, self.groups, self.channels // self.groups).transpose(1, 2)
        return patches.reshape(-1, self.width)

    def scatter_add(self, rows: torch.Tensor, places: torch.Tensor, patches: torch.Tensor) -> None:
        """The adjoint of `gather`: adds the patches to ``rows``."""
        if self.groups > 1:
            patches = patches.view(-1, self.groups, self.taps, self.channels // self.groups).transpose(1, 2)
        rows.index_add_(0, places, patches.reshape(-1, self.channels).to(rows.dtype))

    def weights(self, filters: torch.Tensor) -> torch.Tensor:
        """Filter banks [B, O, taps * C/groups] in the order of the patches' numbers."""
        banks = filters.flatten(0, 1)
        return banks.permute(0, 1, 3, 4, 2).reshape(len(banks), filters.shape[2], -1)


def forward(input: torch.Tensor, filters: torch.Tensor, guide: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """See `Backend`."""
    regions = region_map(guide)
    patches = _Patches(input, filters.shape[-2:], geometry, regions.shape[1:])
    weights = patches.weights(filters)
    order, counts = _segments(regions, filters.shape[1], filters.shape[0] > 1)
    corners = patches.corners[order]
    output = input.new_empty(len(order), weights.shape[1])
    for bank, chunk in _chunks(counts, max(1, _CHUNK_NUMEL // patches.width)):
        rows = patches.gather(patches.places(corners[chunk]))
        output.index_copy_(0, order[chunk], _product(rows, weights[bank], geometry.groups))
    return output.view(*regions.shape, -1).permute(0, 3, 1, 2)


def _response(grad_output: torch.Tensor, input: torch.Tensor, filters: torch.Tensor, geometry: Geometry):
    """What every filter bank gives at every position, times the gradient there: [N, m, Ho, Wo].

    No cheaper exact form than m convolutions is known. A few banks at a time, so that memory does not depend on m.
    """
    groups, num_regions, out_channels = geometry.groups, filters.shape[1], filters.shape[2]
    response = grad_output.new_empty(len(input), num_regions, *grad_output.shape[2:], dtype=wide_dtype(input.dtype))
    grads = grad_output.unflatten(1, (groups, 1, -1))
    samples = [slice(n, n + 1) for n in range(len(input))] if filters.shape[0] > 1 else [slice(None)]
    for n, sample in enumerate(samples):
        together = max(1, _CHUNK_NUMEL // grads[sample].numel())
        for first in range(0, num_regions, together):
            banks = slice(first, min(first + together, num_regions))
            # Group by group, as the convolution's output channels must be.
            weight = filters[n, banks].unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 2)
            answers = F.conv2d(
                input[sample], weight, None, geometry.stride, geometry.padding, geometry.dilation, groups
            )
            answers = answers.unflatten(1, (groups, -1, out_channels // groups))
            # Widened before the product, which may be beyond fp16.
            response[sample, banks] = (answers.to(response.dtype) * grads[sample]).sum((1, 3))
    return response


def _candidate_response(
    grad_rows: torch.Tensor,
    patches: _Patches,
    weights: torch.Tensor,
    filters_shape: tuple[int, int],
    candidates: torch.Tensor,
) -> torch.Tensor:
    """The same for the regions [N, k, Ho, Wo] alone: one convolution for each of the k, as in `forward`."""
    own, num_regions = filters_shape
    response = torch.empty_like(candidates, dtype=wide_dtype(grad_rows.dtype))
    for rank in range(candidates.shape[1]):
        order, counts = _segments(candidates[:, rank], num_regions, own > 1)
        corners = patches.corners[order]
        inner = response.new_empty(len(order))
        for bank, chunk in _chunks(counts, max(1, _CHUNK_NUMEL // patches.width)):
            answers = _product(patches.gather(patches.places(corners[chunk])), weights[bank], patches.groups)
            inner[order[chunk]] = (answers.to(inner.dtype) * grad_rows.index_select(0, order[chunk])).sum(1)
        response[:, rank] = inner.view(response[:, rank].shape)
    return response


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
    input = input.contiguous(memory_format=torch.channels_last)
    grad_output = grad_output.contiguous(memory_format=torch.channels_last)
    patches = _Patches(input, filters.shape[-2:], geometry, regions.shape[1:])
    weights = patches.weights(filters)
    grad_rows = grad_output.permute(0, 2, 3, 1).reshape(-1, filters.shape[2])
    response = None
    if want_response and candidates is None:
        response = _response(grad_output, input, filters, geometry)
    elif want_response:
        response = _candidate_response(grad_rows, patches, weights, filters.shape[:2], candidates)
    if not (want_input or want_filters):
        return None, None, response
    order, counts = _segments(regions, filters.shape[1], filters.shape[0] > 1)
    corners = patches.corners[order]
    # Sums over many positions are kept in fp32 at least, whatever the images' precision.
    grad_input = torch.zeros_like(patches.rows, dtype=wide_dtype(input.dtype)) if want_input else None
    grad_weights = torch.zeros_like(weights, dtype=wide_dtype(input.dtype)) if want_filters else None
    for bank, chunk in _chunks(counts, max(1, _CHUNK_NUMEL // patches.width)):
        grads = grad_rows.index_select(0, order[chunk])
        places = patches.places(corners[chunk])
        if want_input:
            grad_patches = _product(grads, _transposed(weights[bank], geometry.groups), geometry.groups)
            patches.scatter_add(grad_input, places, grad_patches)
        if want_filters:
            rows, grads = (t.view(len(t), geometry.groups, -1).transpose(0, 1) for t in (patches.gather(places), grads))
            grad_weights[bank] += (grads.mT @ rows).view(grad_weights[bank].shape)
    if want_input:
        grad_input = grad_input.view(patches.shape)[patches.inner].permute(0, 3, 1, 2).to(input.dtype)
    if want_filters:
        banks = grad_weights.view(*filters.shape[:3], *filters.shape[-2:], -1)
        grad_weights = banks.permute(0, 1, 2, 5, 3, 4).to(filters.dtype)
    return grad_input, grad_weights, response
