"""ShuffleNetV2 in the structure of DRConv's authors: one guide a block, shared by its pointwise convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from torch import Tensor, nn

from ...layers.drconv import DRConv2d
from ...layers.guide import reset_guide_
from ...registration import register
from .staged import StagedBackbone, round_channels

_BLOCKS = (4, 8, 4)
_STEM_CHANNELS = 24
# Width multiplier, channels of the first stage and of the last convolution (Ma et al., ECCV 2018, table 5).
_WIDTHS = ((0.0, 0, 1024), (0.5, 48, 1024), (1.0, 116, 1024), (1.5, 176, 1024), (2.0, 244, 2048))
# Which of a block's two pointwise convolutions are dynamic.
_ARRANGEMENTS = {"both": (True, True), "first": (True, False), "last": (False, True), "none": (False, False)}


class BlockGuide(nn.Module):
    """The guide feature of a block: a 1x1 convolution without bias on the block's input.

    Args:
        in_channels: C.
        num_regions: m.

    Shape:
        ``[N, C, H, W] -> [N, m, H, W]``.
    """

    def __init__(self, in_channels: int, num_regions: int):
        super().__init__()
        # A raw parameter, as a parent's `init_cfg` of `layer='Conv2d'` would reach a child module.
        self.guide_weight = nn.Parameter(torch.empty(num_regions, in_channels, 1, 1))
        reset_guide_(self.guide_weight)

    def forward(self, input: Tensor) -> Tensor:
        """Convolves."""
        return F.conv2d(input, self.guide_weight)


class ShuffleBlock(nn.Module):
    """A block of ShuffleNetV2, its modules named as in mmpretrain, with dynamic pointwise convolutions.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, even.
        stride: 1, where half of the channels pass by; or 2, where both branches see all.
        dynamic: Whether the first and the last pointwise convolution are DRConv.
        share_guide: Whether both take the block's guide; else each has its own, on its own input.
        drconv: `DRConv2d`'s own arguments.
        norm_cfg: Norm layer.
        act_cfg: Activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        dynamic: tuple[bool, bool],
        share_guide: bool,
        drconv: dict,
        norm_cfg: dict,
        act_cfg: dict,
    ):
        super().__init__()
        half = out_channels // 2
        inner = in_channels if stride > 1 else half
        norm = dict(norm_cfg=norm_cfg)

        def depthwise(channels: int) -> ConvModule:
            return ConvModule(channels, channels, 3, stride, 1, groups=channels, act_cfg=None, **norm)

        def pointwise(channels: int, is_dynamic: bool = False) -> ConvModule:
            conv_cfg = dict(drconv, type=DRConv2d, own_guide=not share_guide) if is_dynamic else None
            return ConvModule(channels, half, 1, conv_cfg=conv_cfg, act_cfg=act_cfg, **norm)

        if stride > 1:
            self.branch1 = nn.Sequential(depthwise(in_channels), pointwise(in_channels))
        self.branch2 = nn.Sequential(pointwise(inner, dynamic[0]), depthwise(half), pointwise(half, dynamic[1]))
        self.guide = BlockGuide(inner, drconv.get("num_regions", 8)) if share_guide and any(dynamic) else None
        self.stride = stride

    def forward(self, input: Tensor) -> Tensor:
        """``[N, C, H, W]`` to the output at ``stride``."""
        by, through = (None, input) if self.stride > 1 else input.chunk(2, dim=1)
        guide = None if self.guide is None else self.guide(through)
        aside = self.branch1(input) if by is None else by
        for layer in self.branch2:
            if guide is not None and isinstance(layer.conv, DRConv2d):
                through = layer.conv(through, guide)
                through = layer.norm(through) if layer.with_norm else through
                through = layer.activate(through) if layer.with_activation else through
            else:
                through = layer(through)
        # Channel shuffle: the two halves' channels alternate.
        return torch.stack([aside, through], 2).flatten(1, 2)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        dynamic = [i for i in (0, 2) if isinstance(self.branch2[i].conv, DRConv2d)]
        plain = all(f"{prefix}branch2.{i}.conv.weight" in state_dict for i in dynamic)
        if self.guide is not None and plain:  # a standard network's checkpoint has no guide
            state_dict.setdefault(f"{prefix}guide.guide_weight", self.guide.guide_weight.detach())
        super()._load_from_state_dict(state_dict, prefix, *args)


@register
class DRConvShuffleNetV2(StagedBackbone):
    """ShuffleNetV2 with DRConv in its blocks, in the authors' structure.

    The guide is a 1x1 convolution on the input of a block's processing branch, computed once and shared by the block's
    pointwise DRConvs; behind the stride it is resized by nearest neighbour. Modules and parameters are named as in
    mmpretrain's ShuffleNetV2, so a checkpoint of that loads, and computes what it did.

    Four stages with strides 8, 16, 32 and 32: three of blocks, and the last 1x1 convolution.

    Args:
        widen_factor: Width multiplier: 0.5, 1.0, 1.5 and 2.0 are the paper's, others interpolate between them.
        arrangement: Which pointwise convolutions of a block are dynamic: ``'both'``, ``'first'``, ``'last'`` or
            ``'none'``, the standard network.
        share_guide: Whether a block has one guide (the authors' structure); else each DRConv has its own, on its own
            input.
        drconv: `DRConv2d`'s own arguments: ``num_regions``, ``generator``, ``guide_grad_scale``, ...
        out_indices: Stages whose outputs are returned, 0 to 3.
        frozen_stages: Stages up to this number (from 1) do not train, nor does the stem (0); -1 trains all.
        norm_cfg: Norm layer.
        act_cfg: Activation.
        norm_eval: Whether batch norm keeps its statistics while training.
        init_cfg: mmengine's initialisation.

    Raises:
        ValueError: An arrangement or stage that does not exist, a width over 2.0 or that leaves a layer without
            channels.
    """

    def __init__(
        self,
        widen_factor: float = 1.0,
        arrangement: str = "both",
        share_guide: bool = True,
        drconv: dict | None = None,
        out_indices: Sequence[int] = (3,),
        frozen_stages: int = -1,
        norm_cfg: dict = dict(type="BN"),  # noqa: B006
        act_cfg: dict = dict(type="ReLU"),  # noqa: B006
        norm_eval: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ):
        if init_cfg is None:
            init_cfg = [dict(type="Kaiming", layer="Conv2d"), dict(type="Constant", val=1, layer="_BatchNorm")]
        super().__init__(len(_BLOCKS) + 1, out_indices, frozen_stages, norm_eval, init_cfg)
        if arrangement not in _ARRANGEMENTS:
            raise ValueError(f"arrangement={arrangement!r} is not known; choose one of {list(_ARRANGEMENTS)}")
        factors, first, last = zip(*_WIDTHS, strict=True)
        if not widen_factor <= factors[-1]:
            raise ValueError(f"widen_factor must be at most {factors[-1]}, got {widen_factor!r}")
        # Half of a block's channels pass by, so they are even.
        base = round_channels(float(np.interp(widen_factor, factors, first)), widen_factor, 2)
        self.conv1 = ConvModule(3, _STEM_CHANNELS, 3, stride=2, padding=1, norm_cfg=norm_cfg, act_cfg=act_cfg)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layers = nn.ModuleList()
        channels = _STEM_CHANNELS
        for stage, blocks in enumerate(_BLOCKS):
            wide, layer = base * 2**stage, []
            for block in range(blocks):
                layer.append(
                    ShuffleBlock(
                        channels, wide, 1 if block else 2, _ARRANGEMENTS[arrangement], share_guide, drconv or {},
                        norm_cfg, act_cfg,
                    )
                )  # fmt: skip
                channels = wide
            self.layers.append(nn.Sequential(*layer))
        wide = int(np.interp(widen_factor, factors, last))
        self.layers.append(ConvModule(channels, wide, 1, norm_cfg=norm_cfg, act_cfg=act_cfg))
        self.freeze()

    def stem(self, input: Tensor) -> Tensor:
        """The first convolution and the pooling."""
        return self.maxpool(self.conv1(input))
