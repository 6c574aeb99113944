"""``python -m drconv_mm.info``: what is installed, and which backends can run here."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch

from .ops.backends import BACKENDS, ENV
from .version import __version__

# import name: distribution names in the maintained fork and in the original family
TOOLBOXES = {
    "mmengine": ("onedl-mmengine", "mmengine"),
    "mmcv": ("onedl-mmcv", "mmcv"),
    "mmdet": ("onedl-mmdetection", "mmdet"),
    "mmseg": ("onedl-mmsegmentation", "mmsegmentation"),
    "mmpretrain": ("onedl-mmpretrain", "mmpretrain"),
}


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def toolbox_versions() -> dict[str, dict[str, str]]:
    """For each family (``onedl``, ``openmmlab``) the toolboxes found, by import name, with their versions."""
    return {
        family: {name: found for name, pair in TOOLBOXES.items() if (found := _version(pair[place]))}
        for place, family in enumerate(("onedl", "openmmlab"))
    }


def cpu_name() -> str:
    """As the system calls the processor."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def describe() -> str:
    """The report, as text."""
    lines = [
        f"drconv_mm {__version__}",
        f"Python {platform.python_version()} on {platform.platform()}",
        f"torch {torch.__version__}, CUDA {torch.version.cuda if torch.cuda.is_available() else 'not available'}, "
        f"{torch.get_num_threads()} threads",
    ]
    families = {family: found for family, found in toolbox_versions().items() if found}
    for family, found in families.items():
        lines.append(f"family [{family}]: " + ", ".join(f"{name} {version}" for name, version in found.items()))
        missing = [name for name in TOOLBOXES if name not in found]
        if missing:
            lines.append(f"  not installed: {', '.join(missing)}")
    if not families:
        lines.append("no OpenMMLab toolbox found: region_conv2d, DRConv2d and convert work, config keys do not")
    if len(families) > 1:
        lines.append("  two families own the same packages and overwrite each other: uninstall one of them")
    if find_spec("mmcv"):
        try:
            found = "found" if find_spec("mmcv._ext") else "missing, mmdet needs them"  # which imports mmcv
        except Exception as error:  # what mmcv needs may be broken in any way
            found = f"not to be found, as mmcv can't be imported: {type(error).__name__}: {error}"
        lines.append(f"mmcv's compiled operators: {found}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lines.append(f"backends on {device} (choose with backend= or {ENV}):")
    for name, backend in BACKENDS.items():
        reason = backend.why_not(device)
        lines.append(f"  {name:10} {'can run' if reason is None else f'cannot run: {reason}'}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(describe())
