"""MobileFaceNet, the face network of the DRConv paper."""

from __future__ import annotations

from collections.abc import Sequence

from mmcv.cnn import ConvModule
from mmengine.model import kaiming_init
from torch import Tensor, nn

from ...ops.geometry import pair
from ...registration import register
from ..backbones.staged import StagedBackbone, round_channels

# (expansion, output channels, blocks, first stride): the bottlenecks of table 1.
_STAGES = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
_STRIDE = 16  # of all stages together


class Bottleneck(nn.Module):
    """Inverted residual: 1x1 expansion, 3x3 depthwise, and a 1x1 projection without activation.

    Args:
        in_channels: C.
        out_channels: O.
        expansion: Channels inside are ``expansion * C``.
        stride: Of the depthwise convolution; at 1 and equal channels the input is added.
        common: ``conv_cfg`` and ``norm_cfg``.
        act_cfg: Activation.
    """

    def __init__(
        self, in_channels: int, out_channels: int, expansion: int, stride: int, common: dict, act_cfg: dict | None
    ):
        super().__init__()
        wide = in_channels * expansion
        active = dict(common, act_cfg=_activation(act_cfg, wide))
        self.expand = ConvModule(in_channels, wide, 1, **active)
        self.depthwise = _depthwise(wide, 3, stride=stride, padding=1, **active)
        self.project = ConvModule(wide, out_channels, 1, act_cfg=None, **common)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, input: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, O, H/stride, W/stride]``."""
        output = self.project(self.depthwise(self.expand(input)))
        return input + output if self.residual else output


@register
class MobileFaceNet(StagedBackbone):
    """MobileFaceNet (Chen et al., 2018, arXiv 1804.07573, table 1) up to the global depthwise convolution.

    The stages, numbered from 0, are the table's rows behind the stem: five of bottlenecks (strides 4, 8, 8, 16, 16),
    the 1x1 convolution to 512 channels, and the linear global depthwise convolution (GDConv), which leaves
    ``[N, 512, 1, 1]``. The linear 1x1 convolution to the embedding is the neck: ``LinearEmbedding(512, 128)``. Together
    they have 1.0M parameters and 221M multiply-adds at 112x112.

    ``conv_cfg=dict(type='drconv_mm.DRConv')`` makes the 1x1 convolutions dynamic, which is the DRConv paper's setting:
    the 30 of the bottlenecks, and the one to 512 channels, whose geometry a bottleneck has too. The stem and depthwise
    convolutions stay plain by the default ``apply_to``, and ``apply_to=dict(kernel_size=1)`` chooses the same ones. The
    bottlenecks alone: ``drconv_mm.Retrofit`` with ``include='backbone.layers.[0-4].*'``.

    Args:
        input_size: Side, or (height, width), of the images in pixels: multiples of 16, (112, 112) or (112, 96) in the
            paper. The GDConv's kernel is a 16th of it.
        widen_factor: Width multiplier of all channels, any positive number.
        out_indices: Stages whose outputs are returned, 0 to 6.
        frozen_stages: Stages up to this number (from 1) do not train, nor does the stem (0); -1 trains all.
        conv_cfg: Conv type of every convolution.
        norm_cfg: Norm layer.
        act_cfg: Activation; PReLU has one slope a channel.
        norm_eval: Whether batch norm keeps its statistics while training.
        init_cfg: mmengine's initialisation. By default convolutions start as ConvModule's and DRConv's do, with the
            variance of fan_out, so that a standard network and its DRConv twin start alike; depthwise ones, of which
            PyTorch's fan_out is C times too large, with that of fan_in.

    Attributes:
        out_channels: Channels of the last stage, the neck's ``in_channels``.

    Raises:
        ValueError: A stage that does not exist, a width that leaves a layer without channels, or a size that is not a
            multiple of 16; in ``forward``, images of another size.
    """

    def __init__(
        self,
        input_size: int | tuple[int, int] = 112,
        widen_factor: float = 1.0,
        out_indices: Sequence[int] = (6,),
        frozen_stages: int = -1,
        conv_cfg: dict | None = None,
        norm_cfg: dict = dict(type="BN"),  # noqa: B006
        act_cfg: dict | None = dict(type="PReLU"),  # noqa: B006
        norm_eval: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ):
        super().__init__(len(_STAGES) + 2, out_indices, frozen_stages, norm_eval, init_cfg)
        self.input_size = pair("input_size", input_size, _STRIDE)
        if any(size % _STRIDE for size in self.input_size):
            raise ValueError(f"input_size must be multiples of {_STRIDE} pixels, got {input_size!r}")
        common = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg)
        channels = round_channels(64 * widen_factor, widen_factor)
        active = dict(common, act_cfg=_activation(act_cfg, channels))
        self.conv1 = nn.Sequential(  # mmengine would have a ConvModule that is a child of its own start again
            ConvModule(3, channels, 3, stride=2, padding=1, **active),
            _depthwise(channels, 3, padding=1, **active),
        )
        self.layers = nn.ModuleList()
        for expansion, full, blocks, first_stride in _STAGES:
            wide, layer = round_channels(full * widen_factor, widen_factor), []
            for block in range(blocks):
                stride = 1 if block else first_stride
                layer.append(Bottleneck(channels, wide, expansion, stride, common, act_cfg))
                channels = wide
            self.layers.append(nn.Sequential(*layer))
        self.out_channels = wide = round_channels(512 * widen_factor, widen_factor)
        kernel = tuple(size // _STRIDE for size in self.input_size)
        self.layers.append(ConvModule(channels, wide, 1, act_cfg=_activation(act_cfg, wide), **common))
        self.layers.append(_depthwise(wide, kernel, act_cfg=None, **common))
        self.freeze()

    def stem(self, input: Tensor) -> Tensor:
        """The first convolution, and the depthwise one behind it."""
        if tuple(input.shape[2:]) != self.input_size:
            raise ValueError(
                f"images are {tuple(input.shape[2:])} (height, width) and the network was built for {self.input_size}; "
                "resize them, or set input_size of the backbone"
            )
        return self.conv1(input)


def _depthwise(channels: int, kernel_size: int | tuple[int, int], **more) -> ConvModule:
    layer = ConvModule(channels, channels, kernel_size, groups=channels, **more)
    if isinstance(layer.conv, nn.Conv2d):
        kaiming_init(layer.conv, mode="fan_in")
    return layer


def _activation(act_cfg: dict | None, channels: int) -> dict | None:
    """The config with PReLU's number of slopes filled in."""
    if act_cfg is not None and act_cfg["type"] in ("PReLU", nn.PReLU):
        return {"num_parameters": channels, **act_cfg}
    return act_cfg
