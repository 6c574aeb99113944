"""MobileNetV1, which no toolbox has."""

from __future__ import annotations

from collections.abc import Sequence

from mmcv.cnn import ConvModule
from torch import Tensor, nn

from ...registration import register
from .staged import StagedBackbone, round_channels

# (output channels, blocks) of the stages; each but the first halves the resolution.
_STAGES = ((64, 1), (128, 2), (256, 2), (512, 6), (1024, 2))


@register
class MobileNetV1(StagedBackbone):
    """MobileNetV1 (Howard et al., 2017, arXiv 1704.04861, table 1): depthwise separable convolutions.

    Five stages with strides 2, 4, 8, 16 and 32 and, at full width, 64, 128, 256, 512 and 1024 channels.

    Args:
        widen_factor: Width multiplier (the paper's alpha), any positive number.
        out_indices: Stages whose outputs are returned, 0 to 4.
        frozen_stages: Stages up to this number (from 1) do not train, nor does the stem (0); -1 trains all.
        conv_cfg: Conv type of every convolution, ``dict(type='drconv_mm.DRConv')`` for instance.
        norm_cfg: Norm layer.
        act_cfg: Activation.
        norm_eval: Whether batch norm keeps its statistics while training.
        init_cfg: mmengine's initialisation.

    Raises:
        ValueError: A stage that does not exist, or a width that leaves a layer without channels.
    """

    def __init__(
        self,
        widen_factor: float = 1.0,
        out_indices: Sequence[int] = (4,),
        frozen_stages: int = -1,
        conv_cfg: dict | None = None,
        norm_cfg: dict = dict(type="BN"),  # noqa: B006
        act_cfg: dict = dict(type="ReLU"),  # noqa: B006
        norm_eval: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ):
        if init_cfg is None:
            init_cfg = [dict(type="Kaiming", layer="Conv2d"), dict(type="Constant", val=1, layer="_BatchNorm")]
        super().__init__(len(_STAGES), out_indices, frozen_stages, norm_eval, init_cfg)
        common = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=act_cfg)
        channels = round_channels(32 * widen_factor, widen_factor)
        self.conv1 = ConvModule(3, channels, 3, stride=2, padding=1, **common)
        self.layers = nn.ModuleList()
        for stage, (full, blocks) in enumerate(_STAGES):
            wide, layer = round_channels(full * widen_factor, widen_factor), []
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                depthwise = ConvModule(channels, channels, 3, stride=stride, padding=1, groups=channels, **common)
                layer.append(nn.Sequential(depthwise, ConvModule(channels, wide, 1, **common)))
                channels = wide
            self.layers.append(nn.Sequential(*layer))
        self.freeze()

    def stem(self, input: Tensor) -> Tensor:
        """The first convolution."""
        return self.conv1(input)
