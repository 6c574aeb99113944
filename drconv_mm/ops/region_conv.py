"""``region_conv2d``: a convolution whose filter bank is chosen pixel by pixel, as one ``torch.library`` operator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .backends import BACKENDS, Backend, choose_backend
from .geometry import Geometry, memory_format_of, pair, same_padding
from .guide_gradient import guide_gradient, most_likely


def region_conv2d(
    input: Tensor,
    filters: Tensor,
    guide: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    guide_grad: str = "full",
    guide_topk: int = 2,
    guide_grad_scale: float = 1.0,
    backend: str | None = None,
) -> Tensor:
    r"""Convolves each pixel with the filter bank of its region (DRConv, CVPR 2021, section 3.2).

    The region map is ``M = guide.argmax(1)``, ties going to the lowest index, and the output at position p is
    ``filters[n, M[n, p]]`` applied to the patch of ``input[n]`` at p, plus ``bias``. Multiply-adds equal those of a
    standard convolution, whatever m.

    How argmax back-propagates (equations 3 and 4): ``input`` and ``filters`` receive the gradient of the hard choice.
    The guide receives the gradient of the softmax that replaces the one-hot choice. With ``S = softmax(guide, 1)``
    and ``R_j = <grad_output[p], filters_j applied at p>``, it is ``S_j * (R_j - sum_i S_i R_i)``: a region's score
    rises where its filters would have lowered the loss.

    Under ``torch.autocast`` input, filters and bias are cast as ``conv2d`` casts them; argmax and softmax of the guide
    stay fp32. An input in channels_last gives an output in channels_last.

    Args:
        input: ``[N, C, H, W]``, floating point.
        filters: ``[N, m, O, C/groups, kh, kw]``, or ``[1, m, ...]`` where all samples share them; input's dtype.
        guide: ``[N, m, Ho, Wo]``, in input's dtype or float32.
        bias: ``[O]``, input's dtype.
        stride: Step of the window, or (vertical, horizontal).
        padding: Zeros on each side, or (vertical, horizontal), or ``'same'`` (stride 1 only), or ``'valid'``.
        dilation: Step inside the window, or (vertical, horizontal).
        groups: Channel groups, up to depthwise (``groups == C``).
        guide_grad: ``'full'``, the exact gradient above, m convolutions in backward. ``'topk'``: that of the softmax
            over the ``guide_topk`` most likely regions of each pixel, as many convolutions. ``'none'``: zeros.
        guide_topk: k of ``guide_grad='topk'``; m or more is ``'full'``.
        guide_grad_scale: Factor on the guide's gradient (beta in the authors' code); 0 is ``guide_grad='none'``.
        backend: ``'cpu'``, ``'sorted'``, ``'batched'``, ``'dense'`` or ``'reference'``. None takes the environment
            variable ``DRCONV_MM_BACKEND``, else the fastest that can run.

    Returns:
        ``[N, O, Ho, Wo]`` in input's dtype.

    Raises:
        TypeError: Dtypes that are not floating point, or differ.
        ValueError: Shapes, devices, geometry or a backend's name that don't fit; the message says what would.
        RuntimeError: A backend asked for by name that can't run; a second derivative.
    """
    if autocasts(input):
        dtype = torch.get_autocast_dtype(input.device.type)
        input, filters, guide = input.to(dtype), filters.to(dtype), guide.float()
        bias = None if bias is None else bias.to(dtype)
    stride, dilation = pair("stride", stride, 1), pair("dilation", dilation, 1)
    _check_tensors(input, filters, guide, bias, groups)
    if isinstance(padding, str):
        input, padding = _pad_by_name(input, padding, filters.shape[-2:], stride, dilation)
    geometry = Geometry(stride, pair("padding", padding, 0), dilation, groups)
    _check_guide_size(input, filters, guide, geometry)
    candidates = guide_candidates(guide_grad, guide_topk, guide_grad_scale, filters.shape[1])
    output = torch.ops.drconv_mm.region_conv2d(
        input, filters, guide, *geometry, candidates, float(guide_grad_scale), backend or ""
    )
    return output if bias is None else output + bias.view(1, -1, 1, 1)


def autocasts(input: Tensor) -> bool:
    """Whether autocast would cast ``input``."""
    device = input.device.type  # `meta` and others have no autocast to ask
    enabled = torch.amp.autocast_mode.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return enabled and input.dtype is not torch.float64


_DIMS = {
    "input": "4-D [N, C, H, W]",
    "filters": "6-D [N or 1, m, O, C/groups, kh, kw]",
    "guide": "4-D [N, m, Ho, Wo]",
    "bias": "1-D [O]",
}


def check_tensor(name: str, tensor: Tensor, input: Tensor) -> None:
    """Of one argument of `region_conv2d`, that it has the dimensions of its name and goes with the input.

    Raises:
        TypeError: It is not floating point, or not of input's dtype (a guide may be float32 as well).
        ValueError: It has another number of dimensions, or is on another device.
    """
    expected, dim = _DIMS[name], int(_DIMS[name][0])
    if tensor.dim() != dim:
        hint = "; add the batch dimension with unsqueeze(0)" if tensor.dim() == dim - 1 > 0 else ""
        raise ValueError(f"{name} must be {expected}, got shape {tuple(tensor.shape)}{hint}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {tensor.dtype}; convert it with .float()")
    if tensor.dtype != input.dtype and not (name == "guide" and tensor.dtype is torch.float32):
        raise TypeError(f"{name} is {tensor.dtype} and input is {input.dtype}; convert one with .to(), or use autocast")
    if tensor.device != input.device:
        raise ValueError(f"{name} is on {tensor.device} and input is on {input.device}; move one with .to()")


def guide_candidates(guide_grad: str, guide_topk: int, guide_grad_scale: float, num_regions: int) -> int:
    """Of how many regions the guide learns at each pixel: m, k or 0.

    Raises:
        ValueError: An unknown ``guide_grad``, a k under 1, or a scale that is no number.
    """
    if guide_grad not in ("full", "topk", "none"):
        raise ValueError(f"guide_grad={guide_grad!r} is not known; choose one of ['full', 'topk', 'none']")
    if isinstance(guide_topk, bool) or not isinstance(guide_topk, int) or guide_topk < 1:
        raise ValueError(f"guide_topk must be an integer of at least 1, got {guide_topk!r}")
    if isinstance(guide_grad_scale, bool) or not isinstance(guide_grad_scale, (int, float)):
        raise ValueError(f"guide_grad_scale must be a number, got {guide_grad_scale!r}")
    if guide_grad == "none" or guide_grad_scale == 0:
        return 0
    return min(guide_topk, num_regions) if guide_grad == "topk" else num_regions


def _check_tensors(input: Tensor, filters: Tensor, guide: Tensor, bias: Tensor | None, groups: int) -> None:
    for name, tensor in (("input", input), ("filters", filters), ("guide", guide), ("bias", bias)):
        if tensor is not None:
            check_tensor(name, tensor, input)
    batch, channels = input.shape[:2]
    own, num_regions, out_channels, group_channels, height, width = filters.shape
    if num_regions < 1:
        raise ValueError(f"filters must hold at least one region (m >= 1), got shape {tuple(filters.shape)}")
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
        raise ValueError(f"groups must be an integer of at least 1, got {groups!r}")
    if channels % groups or out_channels % groups:
        raise ValueError(f"groups={groups} must divide the {channels} input and {out_channels} output channels")
    if group_channels * groups != channels or height < 1 or width < 1:
        raise ValueError(
            f"filters must be [N or 1, m, O, C/groups={channels // groups}, kh, kw] for an input of {channels} "
            f"channels and groups={groups}, got shape {tuple(filters.shape)}"
        )
    if own != 1 and own != batch:
        raise ValueError(f"filters must hold 1 or N={batch} samples, got {own} (shape {tuple(filters.shape)})")
    if guide.shape[1] != num_regions:
        raise ValueError(f"guide must have one channel a region, m={num_regions} as filters, got {guide.shape[1]}")
    if channels < 1 or out_channels < 1:
        raise ValueError(f"input and output must have channels, got C={channels} and O={out_channels}")
    if bias is not None and bias.shape != (out_channels,):
        raise ValueError(f"bias must be [O={out_channels}], got shape {tuple(bias.shape)}")


def _pad_by_name(
    input: Tensor, padding: str, kernel_size: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[Tensor, tuple[int, int]]:
    """The input and the symmetric padding that is left to do."""
    if padding == "valid":
        return input, (0, 0)
    if padding != "same":
        raise ValueError(f"padding must be an integer, a pair, 'same' or 'valid', got {padding!r}")
    if stride != (1, 1):
        raise ValueError(f"padding='same' needs stride 1, got stride {stride}; give the padding as a number")
    left, right, top, bottom = same_padding(kernel_size, dilation)
    if left == right and top == bottom:
        return input, (top, left)
    return F.pad(input, (0, right - left, 0, bottom - top)), (top, left)


def _check_guide_size(input: Tensor, filters: Tensor, guide: Tensor, geometry: Geometry) -> None:
    size = geometry.output_size(input.shape[-2:], filters.shape[-2:])
    if min(size) < 1:
        raise ValueError(
            f"input of {tuple(input.shape[-2:])} is too small for kernel {tuple(filters.shape[-2:])} with padding "
            f"{geometry.padding} and dilation {geometry.dilation}: the output would be {size}"
        )
    if guide.shape[0] != input.shape[0] or guide.shape[-2:] != size:
        raise ValueError(
            f"guide must be [N={input.shape[0]}, m, Ho={size[0]}, Wo={size[1]}], the batch and size of the output, "
            f"got shape {tuple(guide.shape)}; resize it with torch.nn.functional.interpolate(guide, {size})"
        )


def _geometry(stride: list[int], padding: list[int], dilation: list[int], groups: int) -> Geometry:
    return Geometry(tuple(stride), tuple(padding), tuple(dilation), groups)


_ARGUMENTS = (
    "int[] stride, int[] padding, int[] dilation, int groups, int candidates, float guide_grad_scale, str backend"
)


# With a schema, as torch 2.4 can't infer one from annotations that are strings.
@torch.library.custom_op(
    "drconv_mm::region_conv2d",
    mutates_args=(),
    schema=f"(Tensor input, Tensor filters, Tensor guide, {_ARGUMENTS}) -> Tensor",
)
def _forward(
    input: Tensor,
    filters: Tensor,
    guide: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    candidates: int,
    guide_grad_scale: float,
    backend: str,
) -> Tensor:
    geometry = _geometry(stride, padding, dilation, groups)
    if input.shape[0] == 0:
        return _empty_output(input, filters, guide)
    output = _choose(backend, input, filters, guide, geometry).forward(input, filters, guide, geometry)
    return output.contiguous(memory_format=memory_format_of(input))


def _choose(name: str, input: Tensor, filters: Tensor, guide: Tensor, geometry: Geometry) -> Backend:
    # Chosen inside the operator: a compiler that traces the call sees nothing of it.
    # One output channel a channel is where a matrix product has nothing to multiply.
    depthwise = geometry.groups > 1 and filters.shape[3] == 1
    # Filters that all samples share are few and have many pixels each.
    bank_work = filters.shape[2:].numel() * guide.shape[2] * guide.shape[3]
    bank_work *= 1 if filters.shape[0] > 1 else len(input)
    return BACKENDS[choose_backend(name or None, input.device, filters.shape[1], depthwise, bank_work)]


def _empty_output(input: Tensor, filters: Tensor, guide: Tensor) -> Tensor:
    shape = (input.shape[0], filters.shape[2], *guide.shape[-2:])
    return input.new_empty(shape).contiguous(memory_format=memory_format_of(input))


@_forward.register_fake
def _(input, filters, guide, stride, padding, dilation, groups, candidates, guide_grad_scale, backend):
    return _empty_output(input, filters, guide)


@torch.library.custom_op(
    "drconv_mm::region_conv2d_backward",
    mutates_args=(),
    schema=f"(Tensor grad_output, Tensor input, Tensor filters, Tensor guide, {_ARGUMENTS}, bool[] wanted) -> Tensor[]",
)
def _backward(
    grad_output: Tensor,
    input: Tensor,
    filters: Tensor,
    guide: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    candidates: int,
    guide_grad_scale: float,
    backend: str,
    wanted: list[bool],
) -> list[Tensor]:
    like = _wanted((input, filters, guide), wanted)
    if input.shape[0] == 0:
        return [torch.zeros_like(tensor) for tensor in like]
    geometry = _geometry(stride, padding, dilation, groups)
    # One region has no choice to make: its softmax is constant.
    needed = (wanted[0], wanted[1], wanted[2] and candidates > 1)
    some = most_likely(guide, candidates) if needed[2] else None
    chosen = _choose(backend, input, filters, guide, geometry)
    grads = list(chosen.backward(grad_output, input, filters, guide, geometry, needed, some))
    if needed[2]:
        grads[2] = guide_gradient(guide, grads[2], some, guide_grad_scale)
    elif wanted[2]:
        grads[2] = torch.zeros_like(guide)
    return [_laid_out_like(tensor, grad) for tensor, grad in zip(like, _wanted(grads, wanted), strict=True)]


def _laid_out_like(tensor: Tensor, grad: Tensor) -> Tensor:
    """``grad`` in the dtype and strides that the fake operator promises."""
    promised = torch.empty_like(tensor)
    return grad if (grad.dtype, grad.stride()) == (promised.dtype, promised.stride()) else promised.copy_(grad)


def _wanted(items, wanted: list[bool]) -> list[Tensor]:
    return [item for item, want in zip(items, wanted, strict=True) if want]


@_backward.register_fake
def _(
    grad_output, input, filters, guide, stride, padding, dilation, groups, candidates, guide_grad_scale, backend, wanted
):
    return [torch.empty_like(tensor) for tensor in _wanted((input, filters, guide), wanted)]


def _save_for_backward(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.arguments = inputs[3:]


def _autograd(ctx, grad_output: Tensor):
    wanted = list(ctx.needs_input_grad[:3])
    grads = iter(torch.ops.drconv_mm.region_conv2d_backward(grad_output, *ctx.saved_tensors, *ctx.arguments, wanted))
    return (*(next(grads) if want else None for want in wanted), *(None for _ in ctx.arguments))


def _no_double_backward(ctx, *grads):
    raise RuntimeError(
        "region_conv2d has no second derivative: the guide's gradient is defined by the softmax that replaces argmax, "
        "not by the function computed. Call backward() or autograd.grad() without create_graph=True"
    )


_forward.register_autograd(_autograd, setup_context=_save_for_backward)
_backward.register_autograd(_no_double_backward)


def _multiply_adds(filters_shape: torch.Size, guide_shape: torch.Size) -> int:
    positions = guide_shape[0] * guide_shape[-2] * guide_shape[-1]
    out_channels, group_channels, height, width = filters_shape[2:]
    return positions * out_channels * group_channels * height * width


@register_flop_formula(torch.ops.drconv_mm.region_conv2d)
def _forward_flops(input_shape, filters_shape, guide_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * _multiply_adds(filters_shape, guide_shape)


@register_flop_formula(torch.ops.drconv_mm.region_conv2d_backward)
def _backward_flops(grad_shape, input_shape, filters_shape, guide_shape, *args, out_shape=None, **kwargs) -> int:
    # Each operation by itself; the backends take the chosen region's response from what they compute for the input.
    *_, candidates, _, _, wanted = args
    passes = wanted[0] + wanted[1] + (candidates if wanted[2] and candidates > 1 else 0)
    return 2 * passes * _multiply_adds(filters_shape, guide_shape)
