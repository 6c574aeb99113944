"""The geometry of a convolution, as every backend receives it."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Geometry(NamedTuple):
    """Stride, symmetric zero padding and dilation, each as (vertical, horizontal), and the channel groups."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def output_size(self, input_size: tuple[int, int], kernel_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the output for an input of ``input_size``."""
        height, width = (
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, pad, dilation in zip(
                input_size, kernel_size, self.stride, self.padding, self.dilation, strict=True
            )
        )
        return height, width


def pair(name: str, value: int | tuple[int, int] | list[int], minimum: int) -> tuple[int, int]:
    """``value`` as (vertical, horizontal).

    Raises:
        ValueError: ``value`` is not one or two integers of at least ``minimum``.
    """
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(values) == 1:
        values *= 2
    if len(values) != 2 or any(v is None or isinstance(v, (bool, float, str)) or v < minimum for v in values):
        raise ValueError(f"{name} must be an integer of at least {minimum}, or a pair of them, got {value!r}")
    return values[0], values[1]


def same_padding(kernel_size: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int, int, int]:
    """Zeros that keep the size at stride 1, as (left, right, top, bottom); the odd one goes right and below."""
    vertical, horizontal = (d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True))
    return horizontal // 2, horizontal - horizontal // 2, vertical // 2, vertical - vertical // 2


def memory_format_of(images: torch.Tensor) -> torch.memory_format:
    """Channels_last for ``[N, C, H, W]`` that are laid out so and not, by their sizes, in both ways."""
    channels_last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format
