"""The ROC curve as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from mmengine.logging import MMLogger

from ..files import draft_of
from .roc import tar_at_far

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".pdf", ".png", ".svg")


def check_roc_file(path: str | Path | None) -> None:
    """Refuses a file that could not be written, before a run and not after it.

    Raises:
        ValueError: The suffix names no format.
    """
    if path is not None and Path(path).suffix not in FORMATS:
        raise ValueError(f"roc_file must end in one of {', '.join(FORMATS)}, got {str(path)!r}")


def draw_roc(path: str | Path, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Path:
    """Draws TAR over FAR, on a logarithmic axis down to one false accept.

    Args:
        path: File to write; its suffix says the format (see ``FORMATS``). A relative path lies in the folder of
            mmengine's current log file, which is the run's ``<work_dir>/<timestamp>/``, and without one in the current
            folder.
        curves: Scores of the comparisons of the same person and of different persons, ``[P]`` and ``[N]``, by the name
            for the legend.

    Returns:
        The file written.
    """
    log_file = MMLogger.get_current_instance().log_file
    path = Path(log_file).parent / path if log_file else Path(path)
    figure = roc_figure(curves)
    with draft_of(path) as draft:  # whoever looks at the picture during training sees a whole one
        figure.savefig(draft)
    return path


def roc_figure(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """What `draw_roc` writes."""
    from matplotlib.figure import Figure  # here, for it takes long to import and few draw

    figure = Figure(figsize=(5, 4), dpi=120, layout="constrained")  # not pyplot: no window and no global state
    axes = figure.add_subplot(xscale="log", xlabel="false accept rate", ylabel="true accept rate", ylim=(0, 1.02))
    for name, (positive, negative) in curves.items():
        far = np.geomspace(1 / len(negative), 1, 500)
        axes.step(far, tar_at_far(positive, negative, far), where="post", label=name)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure
