"""The neck that turns a feature map into an embedding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...ops.geometry import pair
from ...registration import register


@register
class LinearEmbedding(BaseModule):
    """Dropout, a linear layer over the whole feature map, and batch norm without a scale.

    Behind MobileFaceNet's GDConv this is the linear 1x1 convolution of its table 1; behind IResNet it is ``fc`` and
    ``features`` of arcface_torch, with these names, and like there the norm's scale is fixed at 1.

    It computes in the parameters' dtype under autocast too: sums over 25,088 numbers are not for half precision.

    Args:
        in_channels: C of the feature map: the backbone's ``out_channels``.
        embedding_size: D, 128 or 512 in the papers.
        map_size: Side, or (height, width), of the feature map: 1 behind MobileFaceNet, 7 behind IResNet at 112x112.
        dropout: Probability, 0 for none.
        init_cfg: mmengine's initialisation.

    Raises:
        ValueError: In ``forward``, a feature map of another shape.
    """

    def __init__(
        self,
        in_channels: int,
        embedding_size: int = 512,
        map_size: int | tuple[int, int] = 1,
        dropout: float = 0.0,
        init_cfg: dict | list[dict] | None = None,
    ):
        super().__init__(init_cfg)
        self.map_shape = (in_channels, *pair("map_size", map_size, 1))
        self.embedding_size = embedding_size
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(in_channels * self.map_shape[1] * self.map_shape[2], embedding_size)
        self.features = nn.BatchNorm1d(embedding_size)
        self.features.weight.requires_grad_(False)

    def forward(self, inputs: Tensor | Sequence[Tensor]) -> Tensor:
        """The backbone's output ``[N, C, H, W]``, or the last of a tuple of them, to ``[N, D]``."""
        feature = inputs if isinstance(inputs, Tensor) else inputs[-1]
        if feature.shape[1:] != self.map_shape:
            raise ValueError(
                f"the feature map is {tuple(feature.shape[1:])} (C, H, W) and the neck was built for {self.map_shape}; "
                "set its in_channels to the backbone's out_channels, and its map_size to what the images' size leaves"
            )
        flat = self.dropout(feature.flatten(1))
        with torch.autocast(feature.device.type, enabled=False):
            return self.features(self.fc(flat.to(self.fc.weight.dtype)))
