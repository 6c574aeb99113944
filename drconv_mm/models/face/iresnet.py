"""IResNet, the network of insightface's arcface_torch, with its parameter names."""

from __future__ import annotations

from collections.abc import Sequence

from mmcv.cnn import build_conv_layer, build_norm_layer
from torch import Tensor, nn

from ...registration import register
from ..backbones.staged import StagedBackbone

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}
_CHANNELS = (64, 128, 256, 512)


class IResBlock(nn.Module):
    """Norm, 3x3 convolution, norm, PReLU, 3x3 convolution, norm; then the input is added, without an activation.

    Args:
        in_channels: C.
        out_channels: O.
        stride: Of the second convolution. A block with stride has a 1x1 convolution and norm on its shortcut.
        conv_cfg: Conv type.
        norm_cfg: Norm layer.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, conv_cfg: dict | None, norm_cfg: dict):
        super().__init__()
        self.bn1 = _norm(norm_cfg, in_channels)
        self.conv1 = build_conv_layer(conv_cfg, in_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = _norm(norm_cfg, out_channels)
        self.prelu = nn.PReLU(out_channels)
        self.conv2 = build_conv_layer(conv_cfg, out_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn3 = _norm(norm_cfg, out_channels)
        self.downsample = None
        if stride > 1:
            shortcut = build_conv_layer(conv_cfg, in_channels, out_channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, _norm(norm_cfg, out_channels))

    def forward(self, input: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, O, H/stride, W/stride]``."""
        output = self.prelu(self.bn2(self.conv1(self.bn1(input))))
        output = self.bn3(self.conv2(output))
        return output + (input if self.downsample is None else self.downsample(input))


@register
class IResNet(StagedBackbone):
    """The improved ResNet of ArcFace (Deng et al., CVPR 2019, arXiv 1801.07698, section 3.1), as in arcface_torch.

    Its first convolution has stride 1, so a 112x112 face is 7x7 behind four stages with strides 2, 4, 8 and 16 and 64,
    128, 256 and 512 channels. The last stage's output is behind the final norm ``bn2``; the layers that follow in
    arcface_torch, ``fc`` and ``features``, are the neck: ``LinearEmbedding(512, 512, map_size=7)``. To load published
    weights, see `FaceRecognizer`.

    With ``conv_cfg=dict(type='drconv_mm.DRConv')`` the 3x3 convolutions of more than 64 channels stay plain by the
    default ``apply_to``, whose ``max_filter_numel`` bounds the memory of generated filters.

    Args:
        depth: 18, 34, 50 or 100.
        out_indices: Stages whose outputs are returned, 0 to 3.
        frozen_stages: Stages up to this number (from 1) do not train, nor does the stem (0); -1 trains all. With 4,
            ``bn2`` does not train either.
        conv_cfg: Conv type of every convolution.
        norm_cfg: Norm layer.
        norm_eval: Whether batch norm keeps its statistics while training.
        init_cfg: mmengine's initialisation.

    Attributes:
        out_channels: Channels of the last stage, the neck's ``in_channels``.

    Raises:
        ValueError: A depth or stage that does not exist.
    """

    out_channels = _CHANNELS[-1]

    def __init__(
        self,
        depth: int = 50,
        out_indices: Sequence[int] = (3,),
        frozen_stages: int = -1,
        conv_cfg: dict | None = None,
        norm_cfg: dict = dict(type="BN"),  # noqa: B006
        norm_eval: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ):
        if depth not in _BLOCKS:
            raise ValueError(f"depth={depth!r} is not known; choose one of {list(_BLOCKS)}")
        if init_cfg is None:  # the variance that DRConv2d starts with, so that both learn at the same rate
            init_cfg = [dict(type="Kaiming", layer="Conv2d"), dict(type="Constant", val=1, layer="_BatchNorm")]
        super().__init__(len(_CHANNELS), out_indices, frozen_stages, norm_eval, init_cfg)
        channels = _CHANNELS[0]
        self.conv1 = build_conv_layer(conv_cfg, 3, channels, 3, padding=1, bias=False)
        self.bn1 = _norm(norm_cfg, channels)
        self.prelu = nn.PReLU(channels)
        for stage, (wide, blocks) in enumerate(zip(_CHANNELS, _BLOCKS[depth], strict=True), 1):
            layer = []
            for block in range(blocks):
                layer.append(IResBlock(channels, wide, 1 if block else 2, conv_cfg, norm_cfg))
                channels = wide
            self.add_module(f"layer{stage}", nn.Sequential(*layer))
        self.bn2 = _norm(norm_cfg, channels)
        self.freeze()

    @property
    def layers(self) -> list[nn.Module]:
        """The stages, which arcface_torch names one by one."""
        return [self.layer1, self.layer2, self.layer3, self.layer4]

    def stem(self, input: Tensor) -> Tensor:
        """The first convolution, at full resolution."""
        return self.prelu(self.bn1(self.conv1(input)))

    def frozen_modules(self) -> list[nn.Module]:
        """The stem's and the stages' modules that do not train."""
        if self.frozen_stages < 0:
            return []
        last = [self.bn2] if self.frozen_stages == len(self.layers) else []
        return [self.conv1, self.bn1, self.prelu, *self.layers[: self.frozen_stages], *last]

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        """``[N, 3, H, W]`` to the outputs of the stages in ``out_indices``."""
        outputs = super().forward(input)
        if len(self.layers) - 1 in self.out_indices:
            return (*outputs[:-1], self.bn2(outputs[-1]))
        return outputs


def _norm(norm_cfg: dict, channels: int) -> nn.Module:
    return build_norm_layer(norm_cfg, channels)[1]
