"""The pictures that runs left: predictions beside ground truth, and region maps."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import cv2
import numpy as np

from .tables import Content, run_folder

KINDS = ("predictions", "regions")
_WIDTH, _QUALITY = 640, 80  # pixels, JPEG
_BUDGET = 2_500_000  # bytes of all pictures: in base64 a third more, and the page is to stay below 5 MB


@dataclass(frozen=True)
class Picture:
    """A picture of a run.

    Attributes:
        task: The run's task.
        conv: The run's conv type.
        seed: The run's seed.
        kind: One of `KINDS`.
        index: Its number among those of the run and kind, from 0; the same number is the same image in all runs.
        caption: What it shows.
        jpeg: The picture, made smaller.
        size: (width, height), pixels.
    """

    task: str
    conv: str
    seed: int
    kind: str
    index: int
    caption: str
    jpeg: bytes
    size: tuple[int, int]

    @property
    def alt(self) -> str:
        """For those who don't see it."""
        what = "Ground truth and prediction" if self.kind == "predictions" else "Region maps"
        return f"{what}, {self.conv}, seed {self.seed}. {self.caption}"


def collect_pictures(work_dir: Path, content: Content) -> tuple[list[Picture], int]:
    """Pictures of one run a task and conv type, its first that has any, as many as a page should hold.

    Returns:
        The pictures, by number, so that all conv types show the same image one after the other; and how many were
        left out or could not be read.
    """
    groups = []
    for task in content.tasks:
        for row in task.rows:
            for result in row.results:
                listed = _listed(run_folder(work_dir, (task.name, row.conv, result.seed)) / "pictures")
                if listed:
                    for kind in KINDS:
                        chosen = [entry for entry in listed if entry[2] == kind]
                        groups.append(
                            [(task.name, row.conv, result.seed, kind, i, *e[:2]) for i, e in enumerate(chosen)]
                        )
                    break
    pictures, left_out, used = [], 0, 0
    for entry in (entry for turn in zip_longest(*groups) for entry in turn if entry is not None):
        *about, path, caption = entry
        found = _small_jpeg(path)
        if found is None or used + len(found[0]) > _BUDGET:
            left_out += 1
            continue
        used += len(found[0])
        pictures.append(Picture(*about, caption, *found))
    return pictures, left_out


def _listed(folder: Path) -> list[tuple[Path, str, str]]:
    """(file, caption, kind) of a run's pictures; a list that can't be read is an empty one."""
    try:
        entries = json.loads((folder / "pictures.json").read_text(encoding="utf-8"))
        # A file beside the list, and nowhere else.
        return [(folder / Path(entry["file"]).name, str(entry["caption"]), entry["kind"]) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _small_jpeg(path: Path) -> tuple[bytes, tuple[int, int]] | None:
    try:
        picture = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    except (OSError, cv2.error):
        return None
    if picture is None:
        return None
    if picture.shape[1] > _WIDTH:
        height = max(1, round(picture.shape[0] * _WIDTH / picture.shape[1]))
        picture = cv2.resize(picture, (_WIDTH, height), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes(), picture.shape[1::-1]
