"""``DRConv``: the conv type a config names; it decides which convolutions become dynamic."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection
from dataclasses import dataclass, fields

import torch
from torch import nn

from ..ops.geometry import pair
from ..registration import register
from .build_report import note_build
from .drconv import DRConv2d


@dataclass(frozen=True)
class ApplyTo:
    """Which convolutions become dynamic, by geometry.

    Args:
        kernel_size: An integer or a pair, or a list of those; None for any.
        min_in_channels: Fewest input channels; the default leaves out the first layer, which sees the image itself.
        max_filter_numel: Most generated numbers an image, ``m * O * C/groups * kh * kw``. They are kept for backward,
            and parameters grow with them: this is the layer's memory. The default (2**19) is 2 MB in fp32.
        grouped: Whether convolutions with groups become dynamic too.
        depthwise: Whether depthwise convolutions become dynamic too.
    """

    kernel_size: int | tuple[int, int] | list | None = None
    min_in_channels: int = 5
    max_filter_numel: int = 2**19
    grouped: bool = False
    depthwise: bool = False

    @classmethod
    def from_config(cls, config: dict | ApplyTo | None) -> ApplyTo:
        """From a dict of a config.

        Raises:
            ValueError: A key that is not an argument.
        """
        if isinstance(config, cls):
            return config
        refuse_unknown("apply_to has no key", config or {}, [field.name for field in fields(cls)])
        return cls(**(config or {}))

    def why_not(
        self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, int], groups: int, num_regions: int
    ) -> str | None:
        """Why this convolution stays plain, as a phrase, or None where it becomes dynamic."""
        kernel = pair("kernel_size", kernel_size, 1)
        if self.kernel_size is not None:
            sizes = self.kernel_size if isinstance(self.kernel_size, list) else [self.kernel_size]
            if kernel not in [pair("apply_to.kernel_size", size, 1) for size in sizes]:
                return f"kernel_size not {self.kernel_size}"
        if in_channels < self.min_in_channels:
            return f"in_channels under min_in_channels={self.min_in_channels}"
        if 1 < groups == in_channels:
            if not self.depthwise:
                return "depthwise=False"
        elif groups > 1 and not self.grouped:
            return "grouped=False"
        if num_regions * out_channels * in_channels // groups * kernel[0] * kernel[1] > self.max_filter_numel:
            return f"m*O*C/groups*k*k over max_filter_numel={self.max_filter_numel}"
        return None


def refuse_unknown(what: str, keys: Collection[str], known: list[str]) -> None:
    """Raises ValueError for a key that is not known, with the nearest that is; ``what`` begins the message."""
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{what} {key!r}; choose from {known}{hint}")


# `DRConv2d`'s beyond those of ``nn.Conv2d``, but for `own_guide`: no toolbox would give a layer its guide.
OWN_ARGUMENTS = [
    name
    for name, p in inspect.signature(DRConv2d).parameters.items()
    if p.kind is inspect.Parameter.KEYWORD_ONLY and name != "own_guide"
]


@register
class DRConv:
    """The conv type: ``conv_cfg=dict(type='drconv_mm.DRConv')`` builds a `DRConv2d`, or the plain convolution.

    ``conv_cfg`` reaches every convolution of a model and knows no names, so the decision is by geometry (`ApplyTo`).
    To choose by name, see `convert` and `Retrofit`. At the model's first forward the log says what became dynamic.

    Args:
        in_channels: As in ``nn.Conv2d``, and so on up to ``padding_mode``.
        out_channels: O.
        kernel_size: Kernel.
        stride: Stride.
        padding: Padding.
        dilation: Dilation.
        groups: Channel groups.
        bias: Whether a bias is added.
        padding_mode: How the border is padded.
        device: Where the parameters lie.
        dtype: The parameters' dtype.
        apply_to: Which convolutions become dynamic: a dict of `ApplyTo`'s arguments.
        fallback: Config of the conv type for the others; its checkpoint layout is its own.
        **drconv: `DRConv2d`'s own arguments: ``num_regions``, ``generator``, ``guide_kernel_size``, ...

    Returns:
        A `DRConv2d`, or what ``fallback`` builds. Never a ``DRConv``: this is a class, and not a function, because
        mmcv calls an object given in a config only if it is a class.

    Raises:
        ValueError: An argument or a key of ``apply_to`` that does not exist, whatever the layer becomes; a ``fallback``
            without a type; arguments of `DRConv2d` that don't fit.
    """

    def __new__(
        cls,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        apply_to: dict | None = None,
        fallback: dict | None = None,
        **drconv,
    ) -> nn.Module:
        """Builds the layer."""
        geometry = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        refuse_unknown("DRConv has no argument", drconv, [*OWN_ARGUMENTS, "apply_to", "fallback"])
        fallback = {"type": "Conv2d"} if fallback is None else fallback
        if not isinstance(fallback, dict) or "type" not in fallback:
            raise ValueError(f"fallback must be a conv type's config, dict(type='DCNv2') or the like, got {fallback!r}")
        placed = {name: value for name, value in (("device", device), ("dtype", dtype)) if value is not None}
        num_regions = drconv.get("num_regions", 8)
        reason = ApplyTo.from_config(apply_to).why_not(in_channels, out_channels, kernel_size, groups, num_regions)
        layer = (
            DRConv2d(*geometry, **placed, **drconv) if reason is None else _build_fallback(fallback, geometry, placed)
        )
        note_build(layer, reason)
        return layer


def _build_fallback(config: dict, geometry: tuple, placed: dict) -> nn.Module:
    if config["type"] in ("Conv2d", nn.Conv2d):
        return nn.Conv2d(*geometry, **placed, **{key: value for key, value in config.items() if key != "type"})
    from mmcv.cnn import build_conv_layer

    names = ("stride", "padding", "dilation", "groups", "bias", "padding_mode")
    arguments = dict(zip(names, geometry[3:], strict=True))
    if arguments["padding_mode"] == "zeros":  # the only one that some conv types know, and don't take by name
        del arguments["padding_mode"]
    return build_conv_layer(config, *geometry[:3], **arguments, **placed)
