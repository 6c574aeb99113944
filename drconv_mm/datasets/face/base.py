"""What the face data sets share: a policy for corrupt images in training, numbered images in evaluation."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from ..scan import list_folder
from .transforms import CorruptImage


class FaceTrainingSet(BaseDataset):
    """Images with labels, of which some may turn out corrupt.

    Args:
        corrupt: What an image that can't be read or decoded is: ``'error'``, or ``'skip'``: the next good one comes in
            its place, and a warning says which it was and how many there were so far, over all workers of this process.
        **kwargs: As mmengine's ``BaseDataset``.

    Raises:
        CorruptImage: By an item, where ``corrupt='error'``, or where no good image follows.
        ValueError: ``corrupt`` is another word, or there is one identity only.
    """

    _skipped: torch.Tensor | None = None  # of a lazy set, too

    def __init__(self, corrupt: str = "error", **kwargs):
        if corrupt not in ("error", "skip"):
            raise ValueError(f"corrupt must be 'error' or 'skip', got {corrupt!r}")
        if corrupt == "skip" and kwargs.get("test_mode"):
            raise ValueError("corrupt='skip' with test_mode=True: an evaluation can't leave images out")
        self.corrupt = corrupt
        super().__init__(**kwargs)

    def full_init(self) -> None:
        """Finds the images."""
        if self._fully_initialized:
            return
        super().full_init()
        if len(self._metainfo["classes"]) < 2:
            raise ValueError(
                f"{type(self).__name__}: {self.source} has one identity only, "
                f"{self._metainfo['classes'][0]!r}; to learn to tell people apart takes at least two"
            )
        self._forget_skipped()

    @property
    def source(self) -> str:
        """Where the images are, for messages."""
        raise NotImplementedError

    def _forget_skipped(self) -> None:
        # Shared with the workers, so that each image is told of once, and the count is everyone's.
        self._skipped = torch.zeros(len(self), dtype=torch.bool).share_memory_() if self.corrupt == "skip" else None

    @property
    def num_skipped(self) -> int:
        """How many images were found corrupt so far."""
        return 0 if self._skipped is None else int(self._skipped.sum())

    def __getitem__(self, idx: int) -> dict:
        """The idx-th image, or the next good one."""
        if self.corrupt == "error":
            return super().__getitem__(idx)
        tries = min(len(self), self.max_refetch + 1)
        for step in range(tries):
            position = (idx + step) % len(self)
            try:
                return super().__getitem__(position)
            except CorruptImage as problem:
                if not self._skipped[position]:
                    self._skipped[position] = True
                    print_log(
                        f"{type(self).__name__}: skipped image {position}: {problem}; "
                        f"{self.num_skipped} of {len(self)} so far",
                        logger="current",
                        level=logging.WARNING,
                    )
        raise CorruptImage(f"{self.source}: {tries} images in a row, from {idx} on, are corrupt; is the set whole?")

    def get_cat_ids(self, idx: int) -> list[int]:
        """The identity, for mmengine's ``ClassBalancedDataset``; none of a corrupt record that is to be skipped."""
        try:
            return [self.get_data_info(idx)["label"]]
        except CorruptImage:
            if self.corrupt == "error":
                raise
            return []

    def get_subset_(self, indices: Sequence[int] | int) -> None:
        """As ``BaseDataset``'s."""
        super().get_subset_(indices)
        self._forget_skipped()

    def get_subset(self, indices: Sequence[int] | int) -> FaceTrainingSet:
        """As ``BaseDataset``'s."""
        subset = super().get_subset(indices)
        subset._forget_skipped()
        return subset


class FaceImageSet(BaseDataset):
    """Images of an evaluation, numbered 0 ... n-1, each once; items hold ``index``.

    Args:
        data_root: Folder of the data.
        data_prefix: Folder of the images in it.
        ann_file: A file of the data, relative to ``data_root``.
        pipeline: Transforms.
        lazy_init: Whether to look at the data later.
    """

    def __init__(
        self,
        data_root: str = "",
        data_prefix: str = "",
        ann_file: str = "",
        pipeline: Sequence = (),
        lazy_init: bool = False,
    ):
        super().__init__(
            ann_file=ann_file,
            data_root=data_root,
            data_prefix=dict(img_path=data_prefix),
            pipeline=list(pipeline),
            test_mode=True,
            lazy_init=lazy_init,
        )

    @property
    def folder(self) -> Path:
        """Where the images are."""
        return Path(self.data_prefix["img_path"])

    @property
    def metainfo(self) -> dict:
        """What a metric needs: arrays, read-only, not copied as ``BaseDataset`` does: IJB-C has 15 million pairs."""
        return dict(self._metainfo)

    def get_data_info(self, idx: int) -> dict:
        """What is known of an image; ``index`` is its number."""
        info = super().get_data_info(idx)
        info["index"] = info["sample_idx"]
        return info


def pairs_of(first: Sequence[int], second: Sequence[int], same: Sequence[int], folds: Sequence[int] | None) -> dict:
    """Pairs as metrics take them: arrays [P], read-only; int64, but ``same`` bool."""
    numbers = dict(first=first, second=second, folds=folds)
    pairs = {name: None if value is None else np.asarray(value, dtype=np.int64) for name, value in numbers.items()}
    pairs["same"] = np.asarray(same, dtype=bool)
    for value in pairs.values():
        if value is not None:
            value.setflags(write=False)
    return pairs


def read_fields(path: Path, what: str) -> Iterator[tuple[int, list[str]]]:
    """A list's lines as numbers (from 1) and fields, which tabs part, or else blanks; empty lines are left out.

    Raises:
        FileNotFoundError: There is no such file; the message names it as ``what``.
    """
    if not path.is_file():
        there = list_folder(path.parent) if path.parent.is_dir() else "not even its folder"
        raise FileNotFoundError(f"{what} {str(path)!r} is no file; found {there}")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            fields = line.strip().split("\t" if "\t" in line.strip() else None)
            if fields:
                yield number, fields


def check_images(files: Sequence[Path], source: str, most: int = 5) -> None:
    """Sees that files are there.

    Raises:
        FileNotFoundError: Some are not; one message says how many and the first few.
    """
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{source} names {len(missing)} of {len(files)} images that are not there: "
            f"{', '.join(map(str, missing[:most]))}{' ...' * (len(missing) > most)}"
        )
