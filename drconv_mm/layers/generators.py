"""Filter generators: from the input, one filter bank a region. A new one is a class with ``@register_generator``."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GENERATORS: dict[str, type[FilterGenerator]] = {}

# E[sigmoid(z)^2] for z of standard deviation 1 and 3: what a random weight of the sums below contributes to the
# variance of the filters.
_MEAN_SQUARE_SIGMOID, _MEAN_SQUARE_SIGMOID_3 = 0.2934, 0.3852


def outputs_side_by_side(*shape: int) -> Tensor:
    """An empty ``[..., O, C, kh, kw]`` that lies in memory as ``[..., kh, kw, C, O]``: as the compiled kernels read."""
    *more, out_channels, channels, height, width = shape
    last = len(more)
    empty = torch.empty(*more, height, width, channels, out_channels)
    return empty.permute(*range(last), last + 3, last + 2, last, last + 1)


def register_generator(name: str) -> Callable[[type[FilterGenerator]], type[FilterGenerator]]:
    """Makes a generator known as ``DRConv2d(..., generator=name)``.

    Raises:
        ValueError: Another class has the name already.
    """

    def register(cls: type[FilterGenerator]) -> type[FilterGenerator]:
        if GENERATORS.setdefault(name, cls) is not cls:
            raise ValueError(
                f"a filter generator {name!r} is registered already: {GENERATORS[name]}; choose another name"
            )
        return cls

    return register


class FilterGenerator(nn.Module):
    """Makes a layer's filters ``[N, m, O, C/groups, kh, kw]`` from its input.

    A subclass defines `dynamic`, or `forward` as a whole where that costs less. It keeps raw Parameters only (a
    parent's ``init_cfg`` of ``layer='Conv2d'`` would reach a child module) and names in ``linear_in`` the one that the
    dynamic part is linear in: at zero, it has no effect and learns. ``gain`` is a factor on the dynamic part beside a
    static kernel: it sets how fast that learns.

    Args:
        in_channels: C.
        filter_shape: (O, C/groups, kh, kw) of one filter bank.
        num_regions: m.
    """

    linear_in: str
    gain: float = 1.0

    def __init__(self, in_channels: int, filter_shape: tuple[int, int, int, int], num_regions: int):
        super().__init__()
        self.in_channels = in_channels
        self.filter_shape = filter_shape
        self.num_regions = num_regions

    def reset_parameters(self, std: float) -> None:
        """Initialises in place so that every generated filter has standard deviation ``std``, and regions differ."""
        raise NotImplementedError

    def dynamic(self, input: Tensor) -> Tensor:
        """The part ``[N, m, O, C/groups, kh, kw]`` that depends on the input ``[N, C, H, W]``."""
        raise NotImplementedError

    def forward(self, input: Tensor, static: Tensor | None) -> Tensor:
        """The filters: `dynamic` alone, or ``gain`` times it beside a static kernel ``[O, C/groups, kh, kw]``."""
        filters = self.dynamic(input)
        # In the generated filters' memory layout, which `torch.add` would take from its first argument.
        return filters if static is None else filters.mul(self.gain).add_(static)

    def silent_state(self) -> dict[str, Tensor]:
        """A state of this generator that has no effect yet and trains away from that."""
        state = {name: value.detach() for name, value in self.named_parameters()}
        state[self.linear_in] = torch.zeros_like(state[self.linear_in])
        return state


@register_generator("mixture")
class MixtureGenerator(FilterGenerator):
    """Region filters as mixtures of K base kernels (the authors' code).

    ``W_j = sum_k a_jk B_k`` with ``a = 2 * sigmoid(linear(mean(x))) / K``.

    Args:
        in_channels: C.
        filter_shape: (O, C/groups, kh, kw) of one filter bank.
        num_regions: m.
        num_kernels: K.

    Raises:
        ValueError: ``num_kernels`` is no integer of at least 1.
    """

    linear_in = "kernels"
    gain = 4.0

    def __init__(
        self, in_channels: int, filter_shape: tuple[int, int, int, int], num_regions: int, num_kernels: int = 8
    ):
        super().__init__(in_channels, filter_shape, num_regions)
        if isinstance(num_kernels, bool) or not isinstance(num_kernels, int) or num_kernels < 1:
            raise ValueError(f"num_kernels must be an integer of at least 1, got {num_kernels!r}")
        self.num_kernels = num_kernels
        self.kernels = nn.Parameter(outputs_side_by_side(num_kernels, *filter_shape))
        self.routing_weight = nn.Parameter(torch.empty(num_regions * num_kernels, in_channels))
        self.routing_bias = nn.Parameter(torch.empty(num_regions * num_kernels))

    def reset_parameters(self, std: float) -> None:
        """See the base class."""
        # Filters i and j learn together by (A A^T)_ij of the mixing weights A: at std 3 a third of a step is a region's
        # own. With nearly equal mixtures (the authors' 0.01) all regions learn the same (docs/learning.md).
        nn.init.normal_(self.routing_bias, std=3)
        nn.init.normal_(self.routing_weight, std=0.01)
        nn.init.normal_(self.kernels, std=std * (self.num_kernels / (4 * _MEAN_SQUARE_SIGMOID_3)) ** 0.5)

    def mixing(self, input: Tensor, static: Tensor | None) -> Tensor:
        """The weights ``[N, m, K]`` of the base kernels in each filter, with the gain beside a static kernel."""
        logits = F.linear(input.mean((2, 3)), self.routing_weight, self.routing_bias)
        scale = 2 / self.num_kernels * (1.0 if static is None else self.gain)
        return scale * logits.sigmoid().view(-1, self.num_regions, self.num_kernels)

    def forward(self, input: Tensor, static: Tensor | None) -> Tensor:
        """See the base class."""
        mixing = self.mixing(input, static).flatten(0, 1)
        kernels = self.kernels.permute(0, 3, 4, 2, 1)
        if static is None:
            filters = mixing @ kernels.flatten(1)
        else:  # one pass over the filters, and one over their gradient
            static = static.permute(2, 3, 1, 0).reshape(1, -1)
            filters = torch.addmm(static, mixing, kernels.flatten(1))
        return filters.view(-1, self.num_regions, *kernels.shape[1:]).permute(0, 1, 5, 4, 2, 3)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        kernels = state_dict.get(prefix + "kernels")
        if kernels is not None and kernels.shape[1:] == self.filter_shape and len(kernels) != self.num_kernels:
            args[-1].append(
                f"{prefix}kernels: the checkpoint has num_kernels={len(kernels)} and the model {self.num_kernels}; "
                f"build it with generator=dict(type='mixture', num_kernels={len(kernels)})"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


@register_generator("pooled")
class PooledGenerator(FilterGenerator):
    """Region filters from the input pooled to the kernel's size (the paper, section 3.3).

    Adaptive average pooling to kh x kw, a 1x1 convolution to m*m channels, sigmoid, and a 1x1 convolution of m groups
    to m*O*C/groups channels.

    Args:
        in_channels: C.
        filter_shape: (O, C/groups, kh, kw) of one filter bank.
        num_regions: m.
    """

    linear_in = "expand_weight"
    # Each region has weights of its own: its filters move by m E[sigmoid^2] = 2.3 where a static kernel moves by 1.
    gain = 0.5

    def __init__(self, in_channels: int, filter_shape: tuple[int, int, int, int], num_regions: int):
        super().__init__(in_channels, filter_shape, num_regions)
        out_channels, group_channels = filter_shape[:2]
        self.squeeze_weight = nn.Parameter(torch.empty(num_regions**2, in_channels, 1, 1))
        self.squeeze_bias = nn.Parameter(torch.empty(num_regions**2))
        self.expand_weight = nn.Parameter(torch.empty(num_regions * out_channels * group_channels, num_regions, 1, 1))

    def reset_parameters(self, std: float) -> None:
        """See the base class."""
        nn.init.normal_(self.squeeze_bias)
        nn.init.normal_(self.squeeze_weight, std=0.01)
        nn.init.normal_(self.expand_weight, std=std * (self.num_regions * _MEAN_SQUARE_SIGMOID) ** -0.5)

    def forward(self, input: Tensor, static: Tensor | None) -> Tensor:
        """See the base class."""
        regions, (out_channels, group_channels, *kernel_size) = self.num_regions, self.filter_shape
        batch = input.shape[0]  # not `len`, which an export would make a constant
        pooled = F.adaptive_avg_pool2d(input, kernel_size)
        hidden = F.conv2d(pooled, self.squeeze_weight, self.squeeze_bias).sigmoid()
        # A product for each region: [N kh kw, m] by [m, C/groups O].
        hidden = hidden.unflatten(1, (regions, regions)).permute(1, 0, 3, 4, 2).flatten(1, 3)
        expand = self.expand_weight.view(regions, out_channels, group_channels, regions)
        expand = expand.permute(0, 3, 2, 1).flatten(2)
        if static is None:
            filters = torch.bmm(hidden, expand)
        else:
            static = static.permute(2, 3, 1, 0).flatten(2).expand(batch, -1, -1, -1).flatten(0, 2)
            filters = torch.baddbmm(static, hidden, expand, alpha=self.gain)
        filters = filters.view(regions, batch, *kernel_size, group_channels, out_channels)
        return filters.permute(1, 0, 5, 4, 2, 3)


def build_generator(
    config: str | dict, in_channels: int, filter_shape: tuple[int, int, int, int], num_regions: int
) -> FilterGenerator:
    """A generator from its name, or from ``dict(type=name, ...)`` with its own arguments.

    Raises:
        ValueError: There is no generator of that name, or it has no such argument.
    """
    arguments = {"type": config} if isinstance(config, str) else dict(config)
    name = arguments.pop("type", "mixture")
    if name not in GENERATORS:
        near = difflib.get_close_matches(str(name), GENERATORS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"generator={name!r} is not known; choose one of {sorted(GENERATORS)}{hint}")
    try:
        inspect.signature(GENERATORS[name]).bind(in_channels, filter_shape, num_regions, **arguments)
    except TypeError as error:
        raise ValueError(f"generator {name!r} does not take {sorted(arguments)}: {error}") from error
    return GENERATORS[name](in_channels, filter_shape, num_regions, **arguments)
