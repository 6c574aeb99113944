"""Modules around the operator: the layer, the conv type a config names, and the conversion of built models."""

from .conv_type import ApplyTo, DRConv
from .convert import Retrofit, convert
from .drconv import DRConv2d, observe_regions
from .generators import GENERATORS, FilterGenerator, register_generator

__all__ = [
    "GENERATORS",
    "ApplyTo",
    "DRConv",
    "DRConv2d",
    "FilterGenerator",
    "Retrofit",
    "convert",
    "observe_regions",
    "register_generator",
]
