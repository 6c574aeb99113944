"""Runs a toolbox's own tools, as installed, in a subprocess."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

KEY = "model.backbone.conv_cfg.type=drconv_mm.DRConv"


def packaged(toolbox: str, *parts: str) -> Path:
    """A tool or config that comes with ``mmdet``, ``mmseg`` or ``mmpretrain``."""
    return Path(find_spec(toolbox).origin).parent.joinpath(".mim", *parts)


def command(toolbox: str, tool: str, *arguments: object, options: dict | None = None) -> list[str]:
    line = [sys.executable, str(packaged(toolbox, "tools", tool)), *map(str, arguments)]
    if options:
        line += ["--cfg-options", *(value if key is None else f"{key}={value}" for key, value in options.items())]
    return line


def environment() -> dict[str, str]:
    # Nothing of this repository is on the path: the dotted name alone brings the package in.
    return {**os.environ, "PYTHONPATH": "", "MPLBACKEND": "Agg"}


def run(line: list[str], cwd: Path, timeout: int = 420) -> str:
    """Runs it and returns what it printed; a failure shows the end of that."""
    done = subprocess.run(
        line, cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout
    )
    assert done.returncode == 0, f"{' '.join(line)}\n...\n{done.stdout[-6000:]}"
    return done.stdout
