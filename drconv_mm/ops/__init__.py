"""The operator: a function of tensors that knows nothing about modules."""

from .region_conv import region_conv2d

__all__ = ["region_conv2d"]
