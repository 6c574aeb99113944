"""What the learning study compares: its arms, and the networks that they are set in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from drconv_mm.engine.complexity import Cost, count_by_part
from drconv_mm.layers import DRConv2d, register_generator
from drconv_mm.layers.conv_type import ApplyTo
from drconv_mm.layers.generators import MixtureGenerator
from drconv_mm.models.backbones.drconv_shufflenet_v2 import ShuffleBlock

SIZE = 96  # of an image's side, pixels


@dataclass(frozen=True)
class Arm:
    """One line of the table.

    Attributes:
        about: What it is, for the table.
        drconv: `DRConv2d`'s own arguments, or None for the standard network.
        widened: Whether the standard network has the multiply-adds of the DRConv one.
        start: Initialises the network in another way.
        random_regions: Whether the region maps are random and fixed.
        decayed: Whether the guides' and the generators' weights decay as the others do.
        networks: Those that it can be built in; None for all.
    """

    about: str
    drconv: dict | None = field(default_factory=dict)
    widened: bool = False
    start: Callable[[nn.Module], None] | None = None
    random_regions: bool = False
    decayed: bool = True
    networks: tuple[str, ...] | None = None

    @property
    def num_regions(self) -> int:
        """m; 0 of a standard network."""
        return 0 if self.drconv is None else self.drconv.get("num_regions", 8)

    def fits(self, network: str) -> bool:
        """Whether the network can have it."""
        return self.networks is None or network in self.networks


def dynamic_layers(model: nn.Module) -> list[DRConv2d]:
    """The DRConv layers."""
    return [module for module in model.modules() if isinstance(module, DRConv2d)]


def authors_start(model: nn.Module) -> None:
    """As the authors' code starts: routing of std 0.01, guide and kernels as ``nn.Conv2d``.

    Their routing has no bias; here it starts at 0 and learns.
    """
    for layer in dynamic_layers(model):
        nn.init.normal_(layer.generator.routing_weight, std=0.01)
        nn.init.zeros_(layer.generator.routing_bias)
        for kernel in layer.generator.kernels:
            nn.init.kaiming_uniform_(kernel, a=5**0.5)
    uncentred_guide(model)


def guide_weights(model: nn.Module) -> list[nn.Parameter]:
    """Those of the layers, and of blocks whose layers share a guide."""
    return [parameter for name, parameter in model.named_parameters() if name.endswith("guide_weight")]


def uncentred_guide(model: nn.Module) -> None:
    """Guides as ``nn.Conv2d``, whose kernels do not sum to zero."""
    for weight in guide_weights(model):
        nn.init.kaiming_uniform_(weight, a=5**0.5)


def sharp_guide(model: nn.Module) -> None:
    """A quarter of the softmax's temperature: the gradient reaches less far beyond the likeliest region."""
    for weight in guide_weights(model):
        weight.data.mul_(4)


def guide_norm(model: nn.Module) -> None:
    """Batch norm behind each block's guide: on average the regions' scores are equally high and spread."""
    for block in [module for module in model.modules() if isinstance(module, ShuffleBlock)]:
        block.guide = nn.Sequential(block.guide, nn.BatchNorm2d(len(block.guide.guide_weight), affine=False))


def apart_start(model: nn.Module) -> None:
    """Half of the filters' variance is the dynamic part's: the regions' filters differ from the start."""
    for layer in dynamic_layers(model):
        std = layer.static_weight.std().item() * 0.5**0.5
        layer.generator.reset_parameters(std / layer.generator.gain)
        nn.init.normal_(layer.static_weight, std=std)


def routing_start(std: float) -> Callable[[nn.Module], None]:
    """Other routing logits: with large ones the regions' mixtures differ from the start, and learn apart."""

    def start(model: nn.Module) -> None:
        for layer in dynamic_layers(model):
            nn.init.normal_(layer.generator.routing_bias, std=std)

    return start


@register_generator("centred")
class CentredMixture(MixtureGenerator):
    """Mixing weights around zero, beside a static kernel, which what all base kernels share is left to."""

    def mixing(self, input: Tensor, static: Tensor | None) -> Tensor:
        """``2 gain (sigmoid - 1/2) / K``."""
        return super().mixing(input, static) - self.gain / self.num_kernels

    def reset_parameters(self, std: float) -> None:
        """E[sigmoid^2] = 0.385 and E[(sigmoid - 1/2)^2] = 0.135 at logits of std 3."""
        super().reset_parameters(std * (0.3852 / 0.1352) ** 0.5)


def gain_start(gain: float) -> Callable[[nn.Module], None]:
    """Another factor on the dynamic part beside the static kernel."""

    def start(model: nn.Module) -> None:
        for layer in dynamic_layers(model):
            layer.generator.kernels.data.mul_(layer.generator.gain / gain)
            layer.generator.gain = gain

    return start


ARMS = {
    "standard": Arm("standard convolution", None),
    "widened": Arm("standard, widened to DRConv's multiply-adds", None, widened=True),
    "drconv": Arm("DRConv, the defaults (mixture, m = 8)"),
    "m1": Arm("m = 1", {"num_regions": 1}),
    "m2": Arm("m = 2", {"num_regions": 2}),
    "m4": Arm("m = 4", {"num_regions": 4}),
    "frozen_guide": Arm("guide not trained (`guide_grad_scale=0`)", {"guide_grad_scale": 0.0}),
    "guide0.1": Arm("a tenth of the guide's gradient (`guide_grad_scale=0.1`)", {"guide_grad_scale": 0.1}),
    "guide10": Arm("the guide's gradient tenfold (`guide_grad_scale=10`)", {"guide_grad_scale": 10.0}),
    "random_regions": Arm("random fixed region maps", random_regions=True),
    "topk": Arm("`guide_grad='topk'`, k = 2", {"guide_grad": "topk", "guide_topk": 2}),
    "pooled": Arm("generator `pooled`", {"generator": "pooled"}),
    "no_static": Arm("`mixture` without static kernel", {"generator": {"type": "mixture", "static": False}}),
    "authors": Arm(
        "the authors' layer: their initialisation, no static kernel",
        {"generator": {"type": "mixture", "static": False}},
        start=authors_start,
    ),
    "apart": Arm("regions' filters differ from the start", start=apart_start),
    "routing1": Arm("routing logits of std 1 in place of 3", start=routing_start(1.0)),
    "alike": Arm("routing logits of std 0.3 in place of 3", start=routing_start(0.3)),
    "centred4": Arm("mixing weights around zero, gain 4", {"generator": "centred"}),
    "centred8": Arm("mixing weights around zero, gain 8", {"generator": "centred"}, start=gain_start(8.0)),
    "gain2": Arm("dynamic part at half the gain", start=gain_start(2.0)),
    "uncentred_guide": Arm("guide kernels that don't sum to zero", start=uncentred_guide),
    "sharp_guide": Arm("guide kernels four times as large", start=sharp_guide),
    "guide_norm": Arm("batch norm behind the guide", start=guide_norm, networks=("drconv_shufflenet_v2-0.5x",)),
    "no_decay": Arm("no weight decay on guide and generator", decayed=False),
}


def _drconv_shufflenet(arm: Arm, width: float) -> dict:
    arrangement = "none" if arm.drconv is None else "both"
    return dict(
        type="drconv_mm.DRConvShuffleNetV2", widen_factor=width, arrangement=arrangement, drconv=dict(arm.drconv or {})
    )


def _conv_cfg(arm: Arm) -> dict | None:
    """The key's value. The default leaves layers out by m times their size: here the same ones at every m."""
    if arm.drconv is None:
        return None
    limit = ApplyTo().max_filter_numel * arm.num_regions // 8
    return dict(arm.drconv, type="drconv_mm.DRConv", apply_to=dict(max_filter_numel=limit))


def _shufflenet_by_key(arm: Arm, width: float) -> dict:
    if arm.drconv is None:  # mmpretrain's own has four widths only
        return _drconv_shufflenet(arm, width)
    return dict(type="mmpretrain.ShuffleNetV2", widen_factor=width, conv_cfg=_conv_cfg(arm))


def _mobilenet_v1(arm: Arm, width: float) -> dict:
    return dict(type="drconv_mm.MobileNetV1", widen_factor=width, conv_cfg=_conv_cfg(arm))


NETWORKS: dict[str, tuple[Callable[[Arm, float], dict], float]] = {
    "drconv_shufflenet_v2-0.5x": (_drconv_shufflenet, 0.5),
    "shufflenet_v2-0.5x": (_shufflenet_by_key, 0.5),
    "mobilenet_v1-0.25x": (_mobilenet_v1, 0.25),
}


class Classifier(nn.Module):
    """Backbone, global average pooling, linear layer: ``[N, 3, H, W] -> [N, classes]``.

    The backbones keep ConvModule's start (kaiming, fan_out), so that all networks start in the same way: mmpretrain's
    ``ShuffleNetV2.init_weights`` has another, which no other width has.
    """

    def __init__(self, backbone: dict, num_classes: int):
        super().__init__()
        self.backbone = MODELS.build(backbone)
        channels = self.backbone(torch.zeros(2, 3, SIZE, SIZE))[-1].shape[1]
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """The logits."""
        return self.fc(self.backbone(images)[-1].mean((2, 3)))


def build(network: str, arm: Arm, num_classes: int) -> Classifier:
    """The arm's network.

    Raises:
        ValueError: It can't have that arm.
    """
    if not arm.fits(network):
        raise ValueError(f"arm {arm.about!r} is of {', '.join(arm.networks or ())} alone, not of {network}")
    make, width = NETWORKS[network]
    if arm.widened:
        width = matching_width(network, num_classes)
    model = Classifier(make(arm, width), num_classes)
    if arm.start is not None:
        arm.start(model)
    return model


def multiply_adds(model: nn.Module) -> int:
    """Of one image."""
    return count_by_part(model, (SIZE, SIZE))["total"].multiply_adds


@cache
def costs_of(network: str, arm_name: str, num_classes: int) -> dict[str, Cost]:
    """Of one image, by part."""
    return count_by_part(build(network, ARMS[arm_name], num_classes), (SIZE, SIZE))


@cache
def matching_width(network: str, num_classes: int) -> float:
    """The width at which the standard network has the multiply-adds of the DRConv one, by bisection."""
    make, low = NETWORKS[network]
    wanted, high = multiply_adds(Classifier(make(ARMS["drconv"], low), num_classes)), 4 * low
    for _ in range(10):
        middle = (low + high) / 2
        enough = multiply_adds(Classifier(make(ARMS["standard"], middle), num_classes)) >= wanted
        low, high = (low, middle) if enough else (middle, high)
    return high


def trained_as(network: str, arm: str) -> str:
    """Whose runs they are: the standard networks of the two ShuffleNetV2 are one."""
    return "drconv_shufflenet_v2-0.5x" if (network, arm) == ("shufflenet_v2-0.5x", "standard") else network
