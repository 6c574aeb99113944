"""Says once per model what became dynamic and what it costs, before a user finds out by himself."""

from __future__ import annotations

import logging
import weakref
from collections import Counter

import torch
from torch import nn

from .drconv import DRConv2d

# What the conv type built since the last report. Layers don't know their model: the first that runs ends the list.
_pending: list[tuple[weakref.ref, str | None]] = []
_handles: list = []


def note_build(layer: nn.Module, reason: str | None) -> None:
    """Remembers a layer and why it stayed plain (None: it did not)."""
    _handles.append(layer.register_forward_pre_hook(report_pending))
    _pending.append((weakref.ref(layer), reason))


def report_pending(module: nn.Module, args: tuple) -> None:
    """The hook that ends the list."""
    # A trace would take in the parameters that are counted here; a compiler can't follow the removal of hooks.
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return
    for key in [key for key, hook in module._forward_pre_hooks.items() if hook is report_pending]:
        del module._forward_pre_hooks[key]  # a copy's, which has no handle
    while _handles:
        _handles.pop().remove()
    built = [(layer(), reason) for layer, reason in _pending if layer() is not None]
    _pending.clear()
    if built:
        report([layer for layer, reason in built if reason is None], Counter(r for _, r in built if r is not None))


def report(dynamic: list[DRConv2d], plain: Counter) -> None:
    """Logs how many convolutions are dynamic, their parameters and filter bytes an image, and why others are not.

    Args:
        dynamic: The DRConv layers of a model.
        plain: How many convolutions stayed plain, for each reason.
    """
    reasons = "; ".join(f"{count}: {reason}" for reason, count in plain.most_common())
    if not dynamic:
        _log(
            f"drconv_mm: none of {plain.total()} convolutions became DRConv, the model is a standard one. "
            f"Why they stayed plain: {reasons}. Change `apply_to`, or choose by name with drconv_mm.Retrofit",
            logging.WARNING,
        )
        return
    parameters = sum(p.numel() for layer in dynamic for p in layer.parameters())
    plain_parameters = sum(
        layer.filter_numel // layer.num_regions + (0 if layer.bias is None else layer.out_channels) for layer in dynamic
    )
    extra = parameters - plain_parameters
    filters = sum(layer.filter_numel * next(layer.parameters()).element_size() for layer in dynamic)
    regions = "/".join(str(m) for m in sorted({layer.num_regions for layer in dynamic}))
    _log(
        f"drconv_mm: {len(dynamic)} of {len(dynamic) + plain.total()} convolutions are DRConv (m={regions}, "
        f"{'/'.join(sorted({layer.generator_type for layer in dynamic}))}): {parameters / 1e6:.2f}M parameters, "
        f"{extra / 1e6:.2f}M more than plain, and {filters / 1e6:.2f} MB of generated filters an image"
        + (f". Plain: {reasons}" if reasons else ""),
        logging.INFO,
    )
    frozen = [layer for layer in dynamic if not any(p.requires_grad for p in layer.parameters())]
    if frozen and len(frozen) < len(dynamic):
        _log(
            f"drconv_mm: {len(frozen)} of the {len(dynamic)} DRConv layers are frozen (requires_grad=False): they stay "
            "the standard convolutions that were loaded, at the cost of DRConv. Lower the backbone's `frozen_stages`, "
            "or leave these layers out by name with drconv_mm.Retrofit",
            logging.WARNING,
        )


def _log(message: str, level: int) -> None:
    try:
        from mmengine.logging import print_log
    except ImportError:
        logging.getLogger("drconv_mm").log(level, message)
    else:
        print_log(message, logger="current", level=level)
