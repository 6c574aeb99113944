"""The implementations of the operator, one file each, and the choice among them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import NamedTuple

import torch

from . import batched, cpu, dense, reference
from . import sorted as sorted_

ENV = "DRCONV_MM_BACKEND"
# Multiply-adds under which m products in one call beat a call a bank; measured on CPUs with 2 threads.
_BATCHED_WORK = 1 << 21
# The same on a GPU, where a call weighs more; measured on an H200.
_GPU_BATCHED_WORK = 1 << 29
_logger = logging.getLogger(__name__)


class Backend(NamedTuple):
    """One implementation of the operator.

    Attributes:
        forward: ``(input, filters, guide, geometry) -> output``.
        backward: ``(grad_output, input, filters, guide, geometry, wanted, candidates) -> (grad_input, grad_filters,
            response)``, where ``response[n, i, p]`` is the inner product of ``grad_output[n, :, p]`` with what filter
            bank ``candidates[n, i, p]`` gives at p, the first being the chosen one; without candidates (None), for all
            m banks in their order.
            ``wanted`` says which of the three are needed; the others may be None.
        why_not: ``(device) -> reason`` it can't run there, or None.
    """

    forward: Callable
    backward: Callable
    why_not: Callable[[torch.device], str | None]


_MODULES = {"cpu": cpu, "sorted": sorted_, "batched": batched, "dense": dense, "reference": reference}
BACKENDS: dict[str, Backend] = {
    name: Backend(module.forward, module.backward, module.why_not) for name, module in _MODULES.items()
}


def choose_backend(name: str | None, device: torch.device, num_regions: int, depthwise: bool, bank_work: int) -> str:
    """The backend to use: the one asked for, else the fastest that can run.

    Args:
        name: A key of ``BACKENDS``, or None to take ``DRCONV_MM_BACKEND`` or else choose automatically.
        device: Where the input lies.
        num_regions: m.
        depthwise: Whether every channel is a group of its own.
        bank_work: Multiply-adds of one filter bank at every position it could be chosen at.

    Raises:
        ValueError: There is no backend of that name.
        RuntimeError: The backend asked for by name can't run on ``device``.
    """
    asked_by = "backend"
    if name is None:
        name, asked_by = os.environ.get(ENV) or None, ENV
    if name is not None:
        if name not in BACKENDS:
            raise ValueError(f"{asked_by}={name!r} is not a backend of region_conv2d; choose one of {list(BACKENDS)}")
        reason = BACKENDS[name].why_not(device)
        if reason is not None:
            raise RuntimeError(f"{asked_by}={name!r} can't run on {device}: {reason}. Leave it out to choose by itself")
        return name
    if device.type != "cpu":
        # `sorted` makes calls for each filter bank of each image, which leave a GPU idle.
        order = () if depthwise or bank_work > _GPU_BATCHED_WORK else ("batched",)
    elif num_regions == 1:
        order = ()  # a standard convolution
    elif depthwise:
        order = ("cpu",)  # too thin for matrix products
    else:
        order = ("cpu", "batched", "sorted") if bank_work <= _BATCHED_WORK else ("cpu", "sorted")
    for candidate in order:
        reason = BACKENDS[candidate].why_not(device)
        if reason is None:
            return candidate
        _logger.debug("backend %s can't run on %s: %s", candidate, device, reason)
    return "dense"  # runs anywhere
