"""Where the toolboxes' own tools are."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from .errors import SuiteError

# Face configs belong to no toolbox: any of their train.py builds a Runner from them.
_PACKAGES = {"mmdet": "mmdet", "mmseg": "mmseg", "mmpretrain": "mmpretrain", "mmengine": "mmpretrain"}


def resume_arguments(scope: str, checkpoint: Path) -> list[str]:
    """What makes the toolbox's train.py go on from a checkpoint; they follow the ``--cfg-options``.

    mmseg's takes ``--resume`` without a path and overwrites what the config says of it. mmpretrain's lets the options
    have the last word: without ``load_from`` there, weights that a task starts from would take the checkpoint's place.
    """
    return [f"load_from={checkpoint}", "--resume", *([] if _PACKAGES[scope] == "mmseg" else [str(checkpoint)])]


def tool_path(scope: str, tool: str) -> Path:
    """The toolbox's own tool for configs of a scope.

    Args:
        scope: A config's ``default_scope``.
        tool: ``'train.py'`` or ``'test.py'``.

    Raises:
        SuiteError: The scope is of no known toolbox, or it is not installed.
    """
    if scope not in _PACKAGES:
        raise SuiteError(f"default_scope={scope!r} is of no known toolbox; expected one of {', '.join(_PACKAGES)}")
    package = _PACKAGES[scope]
    spec = find_spec(package)
    path = None if spec is None or spec.origin is None else Path(spec.origin).parent / ".mim/tools" / tool
    if path is None or not path.is_file():
        raise SuiteError(f"{package}'s {tool} is missing; install {package} (`make env` in a clone of drconv_mm does)")
    return path
