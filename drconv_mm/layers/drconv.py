"""``DRConv2d``: the layer, always dynamic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import region_conv2d
from ..ops.backends.common import region_map
from ..ops.geometry import Geometry, pair, same_padding
from ..ops.region_conv import autocasts, check_tensor, guide_candidates
from .generators import MixtureGenerator, build_generator, outputs_side_by_side
from .guide import compute_guide, reset_guide_, resize_guide
from .mix_outputs import mix_outputs, mixing_outputs_pays

# Part of a fresh layer's filter variance that is dynamic. Regions whose filters differ from the start are noise that
# slows the training of all layers (docs/learning.md); at exactly zero the guide would have no gradient at first.
_INITIAL_SHARE = 1e-3


# Older torches can't tell an export from a compilation.
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


class DRConv2d(nn.Module):
    r"""Dynamic Region-Aware Convolution (Chen et al., CVPR 2021): ``nn.Conv2d`` with a filter bank for each region.

    A guide convolution splits the plane into ``num_regions`` regions, and a generator makes a filter bank for each of
    them from the input. Takes the place of ``nn.Conv2d``, whose arguments come first.

    Given a convolution's ``weight`` (and ``bias``) in ``load_state_dict``, the layer computes exactly that convolution
    and trains away from it: the weight becomes the static kernel, and the dynamic part starts without effect.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: Kernel, or (vertical, horizontal).
        stride: As in ``nn.Conv2d``.
        padding: As in ``nn.Conv2d``, ``'same'`` and ``'valid'`` included.
        dilation: As in ``nn.Conv2d``.
        groups: Channel groups, up to depthwise.
        bias: Whether a bias is added.
        padding_mode: ``'zeros'``, ``'reflect'``, ``'replicate'`` or ``'circular'``.
        device: Where the parameters lie.
        dtype: The parameters' dtype.
        num_regions: m; the paper's main setting is 8.
        generator: Name of a filter generator (``'mixture'`` or ``'pooled'``), or ``dict(type=name, ...)`` with its
            arguments. ``static=False`` in it leaves the static kernel out: the source's formula alone.
        guide_kernel_size: Kernel of the guide convolution; None for ``kernel_size``.
        guide_grad: How the guide learns: ``'full'`` (exact), ``'topk'`` (from the ``guide_topk`` most likely regions of
            each pixel) or ``'none'``; see `region_conv2d`.
        guide_topk: k of ``guide_grad='topk'``.
        guide_grad_scale: Factor on the guide's gradient (beta in the authors' code).
        own_guide: Whether the layer has a guide convolution. Without one, ``forward`` must be given a guide.

    Shape:
        ``[N, C, H, W] -> [N, O, Ho, Wo]``, as ``nn.Conv2d``.

    Attributes:
        guide_weight: ``[m, C, gh, gw]``, or None.
        static_weight: ``[O, C/groups, kh, kw]``, or None.
        generator: The dynamic part, with parameters of its own.
        bias: ``[O]``, or None.

    Raises:
        ValueError: Arguments that don't fit together; the message names argument, value and remedy.
    """

    transposed = False
    output_padding = (0, 0)

    def __init__(
        self,
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
        num_regions: int = 8,
        generator: str | dict = "mixture",
        guide_kernel_size: int | tuple[int, int] | None = None,
        guide_grad: str = "full",
        guide_topk: int = 2,
        guide_grad_scale: float = 1.0,
        own_guide: bool = True,
    ):
        super().__init__()
        if isinstance(num_regions, bool) or not isinstance(num_regions, int) or num_regions < 1:
            raise ValueError(f"num_regions must be an integer of at least 1, got {num_regions!r}")
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(f"groups={groups} must divide in_channels={in_channels} and out_channels={out_channels}")
        modes = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}
        if padding_mode not in modes:
            raise ValueError(f"padding_mode={padding_mode!r} is not known; choose one of {list(modes)}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = pair("kernel_size", kernel_size, 1)
        self.stride = pair("stride", stride, 1)
        self.dilation = pair("dilation", dilation, 1)
        self.padding = padding if isinstance(padding, str) else pair("padding", padding, 0)
        self.groups = groups
        self.padding_mode = padding_mode
        self.num_regions = num_regions
        guide_candidates(guide_grad, guide_topk, guide_grad_scale, num_regions)  # raises on what is not known
        self.guide_grad = guide_grad
        self.guide_topk = guide_topk
        self.guide_grad_scale = guide_grad_scale
        self._explicit_pads()  # raises on what is not known
        self._pad_mode = modes[padding_mode]

        config = {"type": generator} if isinstance(generator, str) else dict(generator)
        static = config.pop("static", True)
        if guide_kernel_size is not None and not own_guide:
            raise ValueError(
                f"guide_kernel_size={guide_kernel_size!r} is of a layer's own guide, which own_guide=False leaves out; "
                "give one of the two (a network whose blocks share a guide: share_guide=False)"
            )
        filter_shape = (out_channels, in_channels // groups, *self.kernel_size)
        guide_kernel = (
            self.kernel_size if guide_kernel_size is None else pair("guide_kernel_size", guide_kernel_size, 1)
        )
        self.generator = build_generator(config, in_channels, filter_shape, num_regions)
        self.generator_type = config.get("type", "mixture")
        self.static_weight = nn.Parameter(outputs_side_by_side(*filter_shape)) if static else None
        self.guide_weight = nn.Parameter(torch.empty(num_regions, in_channels, *guide_kernel)) if own_guide else None
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.copied_bias: Tensor | None = None  # of the convolution that `convert` made the layer of, on the CPU
        self._observers: list[Callable[[Tensor], Tensor | None]] = []
        self.reset_parameters()
        self.to(device=device, dtype=dtype)

    def _explicit_pads(self) -> tuple[int, int, int, int]:
        """(left, right, top, bottom)."""
        if self.padding == "same":
            if self.stride != (1, 1):
                raise ValueError(f"padding='same' needs stride 1, got stride={self.stride}; give it as a number")
            return same_padding(self.kernel_size, self.dilation)
        if self.padding == "valid":
            return 0, 0, 0, 0
        if isinstance(self.padding, str):
            raise ValueError(f"padding must be an integer, a pair, 'same' or 'valid', got {self.padding!r}")
        top, left = pair("padding", self.padding, 0)
        return left, left, top, top

    def reset_parameters(self) -> None:
        """Initialises all in place, as ``nn.Conv2d.reset_parameters``; the bias at zero."""
        self.init_weights()
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def init_weights(self) -> None:
        """Initialises in place: outputs with the variance of ``kaiming_init`` (fan_out, relu), regions that differ.

        The bias stays where a parent's ``init_cfg`` has just set it (a detector's prior probability); what `convert`
        copied of a convolution, which ``init_cfg`` would have set to zero, becomes that.
        Named so that mmcv's ConvModule and mmengine's BaseModule leave the layer to itself.
        """
        std = (2 / (self.out_channels * self.kernel_size[0] * self.kernel_size[1])) ** 0.5
        if self.static_weight is None:
            self.generator.reset_parameters(std)
        else:
            nn.init.normal_(self.static_weight, std=std)
            self.generator.reset_parameters(std * _INITIAL_SHARE**0.5 / self.generator.gain)
        if self.guide_weight is not None:
            reset_guide_(self.guide_weight)
        if self.copied_bias is not None and torch.equal(self.bias.detach().cpu(), self.copied_bias):
            nn.init.zeros_(self.bias)

    def generate_filters(self, input: Tensor) -> Tensor:
        """The filter banks ``[N, m, O, C/groups, kh, kw]`` for an input ``[N, C, H, W]``."""
        return self.generator(input, self.static_weight)

    def forward(self, input: Tensor, guide: Tensor | None = None) -> Tensor:
        """Convolves.

        Args:
            input: ``[N, C, H, W]`` in the parameters' dtype; in any that autocast casts, under autocast.
            guide: ``[N, m, h, w]``, in input's dtype or float32, in place of the layer's own; resized by nearest
                neighbour where sizes differ.

        Returns:
            ``[N, O, Ho, Wo]`` in input's dtype; under autocast in autocast's.

        Raises:
            TypeError: ``input`` or ``guide`` is of another dtype.
            ValueError: ``input`` is not 4-D or has another number of channels; there is no guide, or one of another
                batch or number of regions, or on another device.
        """
        if input.dim() != 4 or input.shape[1] != self.in_channels:
            raise ValueError(
                f"input must be [N, C={self.in_channels}, H, W], got shape {tuple(input.shape)}"
                + ("; add the batch dimension with unsqueeze(0)" if input.dim() == 3 else "")
            )
        dtype = getattr(self.generator, self.generator.linear_in).dtype
        if input.dtype != dtype and not autocasts(input):
            raise TypeError(
                f"input is {input.dtype} and the layer's parameters are {dtype}; convert one with .to(), or autocast"
            )
        # Read anew, as nn.Conv2d does: mmseg's MobileNetV3 changes it in layers that are built.
        features, pads = input, self._explicit_pads()
        if self._pad_mode != "constant" or pads[0] != pads[1] or pads[2] != pads[3]:
            input, pads = F.pad(input, pads, self._pad_mode), (0, 0, 0, 0)
        padding = (pads[2], pads[0])
        if guide is not None:
            guide = guide.float() if autocasts(input) else guide  # as the operator
            check_tensor("guide", guide, input)
            geometry = Geometry(self.stride, padding, self.dilation, self.groups)
            guide = resize_guide(guide, geometry.output_size(input.shape[2:], self.kernel_size))
        elif self.guide_weight is not None:
            guide = compute_guide(input, self.guide_weight, self.kernel_size, self.stride, pads, self.dilation)
        else:
            raise ValueError("guide must be given to a layer built with own_guide=False, got None")
        if self._observers:
            guide = self._observed(guide)
        if self._mixes_outputs(input, guide):
            mixing = self.generator.mixing(features, self.static_weight)
            return mix_outputs(
                input, self.generator.kernels, self.static_weight, mixing, guide, self.bias, self.stride, padding,
                self.dilation, self.guide_grad, self.guide_topk, self.guide_grad_scale,
            )  # fmt: skip
        return region_conv2d(
            input, self.generate_filters(features), guide, self.bias, self.stride, padding, self.dilation, self.groups,
            guide_grad=self.guide_grad, guide_topk=self.guide_topk, guide_grad_scale=self.guide_grad_scale,
        )  # fmt: skip

    def _observed(self, guide: Tensor) -> Tensor:
        """The guide of the map that observers put in the place of this one's; this one where they leave it."""
        own, replacement = region_map(guide.detach()), None
        for observer in self._observers:
            found = observer(own if replacement is None else replacement)
            replacement = replacement if found is None else found
        if replacement is None:
            return guide
        return F.one_hot(replacement, self.num_regions).permute(0, 3, 1, 2).to(guide.dtype)

    def _mixes_outputs(self, input: Tensor, guide: Tensor) -> bool:
        """Whether this call takes the order of `mix_outputs`: in training, on a small map."""
        return (
            torch.is_grad_enabled()
            # An exported or traced model has the one operator, whatever its maps' size.
            and not _is_exporting()
            and not torch.jit.is_tracing()
            and self.groups == 1
            # A subclass may have filters that are no mixture.
            and type(self.generator) is MixtureGenerator
            # What does not fit is the operator's to refuse.
            and guide.shape[:2] == (input.shape[0], self.num_regions)
            and mixing_outputs_pays(self.num_regions, self.generator.num_kernels, guide.shape[2] * guide.shape[3])
        )

    @property
    def filter_numel(self) -> int:
        """Generated numbers an image: m * O * C/groups * kh * kw."""
        return (
            self.num_regions
            * self.out_channels
            * self.in_channels
            // self.groups
            * self.kernel_size[0]
            * self.kernel_size[1]
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DRConv2d:
        # `Module.to` gives 4-D and 5-D tensors its memory format; with two more dimensions filters keep their own.
        def apply(tensor: Tensor) -> Tensor:
            hidden = tensor.dim() > 4 or tensor.shape == self.generator.filter_shape
            return fn(tensor[None, None])[0, 0] if hidden else fn(tensor)

        return super()._apply(apply, recurse)

    def __getattr__(self, name: str):
        if name == "weight":
            raise AttributeError(
                "DRConv2d has no `weight`: its filters are generated from each input. Folding it into another layer "
                "(conv-bn fusion, re-parameterisation, deploy) would drop the dynamic part; leave this layer out of "
                "it, or read `static_weight` if the static kernel is what you need"
            )
        return super().__getattr__(name)

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ):
        # Never raises: mmengine calls it with strict=True for every layer, also where keys are rightly missing.
        if prefix + "weight" in state_dict and prefix + "static_weight" not in state_dict:
            self._translate_plain(state_dict, prefix, error_msgs)
        guide = state_dict.get(prefix + "guide_weight")
        if guide is not None and self.guide_weight is not None and len(guide) != self.num_regions:
            error_msgs.append(
                f"{prefix}guide_weight: the checkpoint has num_regions={len(guide)} and the model {self.num_regions}; "
                f"build it with num_regions={len(guide)}"
            )
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _translate_plain(self, state_dict: dict, prefix: str, error_msgs: list[str]) -> None:
        """Turns the entries of a plain convolution into this layer's, in the loader's own copy of the dict."""
        weight = state_dict.pop(prefix + "weight")
        state = {"generator." + name: value for name, value in self.generator.silent_state().items()}
        if self.guide_weight is not None:
            state["guide_weight"] = self.guide_weight.detach()
        if self.static_weight is not None:
            state["static_weight"] = weight
        else:
            state.update({name: value.detach() for name, value in self.generator.named_parameters("generator")})
            error_msgs.append(
                f"{prefix}weight: a plain convolution's weight needs a static kernel to go into, and this layer was "
                f"built with generator=dict(static=False, ...); leave `static` out"
            )
        for name, value in state.items():
            state_dict.setdefault(prefix + name, value)

    def extra_repr(self) -> str:
        """What ``nn.Conv2d`` shows, and the layer's own arguments."""
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        defaults = {
            "padding": (0, 0),
            "dilation": (1, 1),
            "groups": 1,
            "padding_mode": "zeros",
            "guide_grad": "full",
            "guide_grad_scale": 1.0,
        }
        parts += [f"{name}={getattr(self, name)!r}" for name, value in defaults.items() if getattr(self, name) != value]
        parts += [f"guide_topk={self.guide_topk}"] * (self.guide_grad == "topk")
        parts += ["bias=False"] * (self.bias is None) + ["static=False"] * (self.static_weight is None)
        return ", ".join([*parts, f"num_regions={self.num_regions}"])


@contextmanager
def observe_regions(model: nn.Module, callback: Callable[[str, Tensor, int], Tensor | None]) -> Iterator[None]:
    """While it lasts, the callback gets the region map of each DRConv layer that runs, and may replace it.

    Args:
        model: Any module with ``DRConv2d`` inside.
        callback: Receives the layer's name, the map ``[N, Ho, Wo]`` (int64, without gradient) and m. What it returns
            is the map that the layer uses, and its guide gets no gradient; None leaves the layer's own. Where several
            observe, a later one receives what an earlier one put in the map's place.
    """

    def observer(name: str, layer: DRConv2d) -> Callable[[Tensor], Tensor | None]:
        return lambda regions: callback(name, regions, layer.num_regions)

    layers = [(module, name) for name, module in model.named_modules() if isinstance(module, DRConv2d)]
    observers = [(layer, observer(name, layer)) for layer, name in layers]
    for layer, observe in observers:
        layer._observers.append(observe)
    try:
        yield
    finally:  # others may have begun or ended meanwhile, in any order
        for layer, observe in observers:
            layer._observers.remove(observe)
