"""Backbones that no toolbox has; every toolbox can use them."""

from .drconv_shufflenet_v2 import DRConvShuffleNetV2
from .mobilenet_v1 import MobileNetV1

__all__ = ["DRConvShuffleNetV2", "MobileNetV1"]
