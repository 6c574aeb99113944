"""Makes the package's classes known to mmengine, where it is installed."""

from __future__ import annotations

import warnings
from typing import TypeVar

T = TypeVar("T", bound=type)


def register(cls: T) -> T:
    """Registers under the class's name, unless somebody else has it: the dotted name works in any case."""
    try:
        from mmengine.registry import MODELS
    except ImportError:
        return cls
    taken = MODELS.module_dict.get(cls.__name__)
    if taken is None:
        MODELS.register_module(module=cls)
    elif taken is not cls:
        warnings.warn(
            f"{cls.__name__!r} is registered already, by {taken.__module__}: it stays. "
            f"Name this package's as type='drconv_mm.{cls.__name__}'",
            stacklevel=2,
        )
    return cls
