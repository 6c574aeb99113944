"""Dynamic Region-Aware Convolution (DRConv, CVPR 2021) as an OpenMMLab conv type."""

from .ops import region_conv2d
from .version import __version__

__all__ = ["__version__", "region_conv2d"]
