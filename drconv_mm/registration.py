"""Makes the package's classes known to mmengine, where it is installed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T", bound=type)


def register_in(registry: str) -> Callable[[T], T]:
    """Registers under the class's name, unless somebody else has it: the dotted name works in any case.

    Args:
        registry: Name of one of mmengine's: ``'MODELS'``, ``'HOOKS'``, ...
    """

    def register_class(cls: T) -> T:
        try:
            import mmengine.registry
        except ImportError:
            return cls
        modules = getattr(mmengine.registry, registry)
        taken = modules.module_dict.get(cls.__name__)
        if taken is None:
            modules.register_module(module=cls)
        elif taken is not cls:
            warnings.warn(
                f"{cls.__name__!r} is registered already, by {taken.__module__}: it stays. "
                f"Name this package's as type='drconv_mm.{cls.__name__}'",
                stacklevel=2,
            )
        return cls

    return register_class


register = register_in("MODELS")
