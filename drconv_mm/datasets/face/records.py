"""Training faces in insightface's records."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.logging import print_log

from ...registration import register_in
from .base import FaceTrainingSet
from .recordio import PEEK, ImageRecord, RecordCutOff, RecordError, RecordReader, peek, read_index, unpack
from .transforms import CorruptImage

_EXACT = 1 << 24  # whole numbers up to here are exact in float32, which labels are


class _RecordList(Sequence):
    """Keys and offsets of the images, 16 bytes each, as the list of dicts that ``BaseDataset`` expects."""

    def __init__(self, keys: np.ndarray, offsets: np.ndarray):
        self.keys = keys
        self.offsets = offsets

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int | slice) -> dict | _RecordList:
        if isinstance(index, slice):
            return _RecordList(self.keys[index], self.offsets[index])
        return dict(key=int(self.keys[index]), offset=int(self.offsets[index]))


def _whole_label(label: float) -> int:
    if label < 0 or not label.is_integer():
        raise RecordError(f"has the label {label}; expected 0, 1, 2 ...")
    return int(label)


@register_in("DATASETS")
class FaceRecords(FaceTrainingSet):
    """Faces to train on in a ``.rec`` with its ``.idx``, as MS1MV2/MV3, Glint360K and CASIA-WebFace are distributed.

    ``dict(type='drconv_mm.FaceRecords', data_root='data/ms1m-retinaface-t1', pipeline=[...])``

    An item, before the pipeline: ``img_bytes`` (encoded), ``label``, ``key`` (of the record), ``img_name``. Images are
    read when they are asked for; 16 bytes an image stay in memory. In insightface's sets record 0 has two labels, the
    keys of the first identity and behind the last, and images have the keys before; a set without such a record has
    images only, and is read through once to count the labels.

    ``metainfo['classes']``: names from the ``.json`` beside the ``.rec`` (``tools/face/make_records.py`` writes it),
    else the labels themselves.

    Args:
        data_root: Folder of the data.
        ann_file: The ``.rec`` in it.
        pipeline: Transforms.
        corrupt: ``'error'`` or ``'skip'``, see `FaceTrainingSet`; damaged and cut-off records count as corrupt images.
        **kwargs: As mmengine's ``BaseDataset``: ``lazy_init``, ``indices``, ...

    Raises:
        FileNotFoundError: The ``.rec`` or the ``.idx`` is missing.
        ValueError: The ``.rec`` is another format; it is shorter than its ``.idx`` says, and ``corrupt='error'``; there
            is one identity only; a label is outside the identities.
    """

    def __init__(
        self,
        data_root: str = "",
        ann_file: str = "train.rec",
        pipeline: Sequence = (),
        corrupt: str = "error",
        **kwargs,
    ):
        super().__init__(
            ann_file=ann_file,
            data_root=data_root,
            pipeline=list(pipeline),
            corrupt=corrupt,
            serialize_data=False,
            **kwargs,
        )

    @property
    def source(self) -> str:
        """The ``.rec``."""
        return self.ann_file

    def load_data_list(self) -> _RecordList:
        """Reads the index."""
        index = Path(self.source).with_suffix(".idx")
        self._reader = RecordReader(self.source)
        if not index.is_file():
            raise FileNotFoundError(
                f"{index}, the index of {self.source}, is missing; make it by "
                f"`python tools/face/make_records.py --index {self.source}`"
            )
        keys, offsets = read_index(index)
        header = self._header(keys, offsets)
        if header is not None:
            order = np.argsort(keys, kind="stable")
            keys, offsets, num_classes = self._images(header, keys[order], offsets[order])
        whole = self._whole(keys, offsets)
        keys, offsets = keys[whole], offsets[whole]
        if not len(keys):
            raise ValueError(f"{self.source} has no image; is it the .rec of a training set, and whole?")
        if header is None:
            num_classes = self._count_labels(keys, offsets)
        self._metainfo["classes"] = self._names(num_classes)
        return _RecordList(keys, offsets)

    def _images(self, header: ImageRecord, keys: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Keys and offsets of the images, among those of all records by key; and the number of identities."""
        first, behind = (int(label) for label in header.labels[:2])
        end = int(np.searchsorted(keys, first))
        if behind <= _EXACT:
            return keys[1:end], offsets[1:end], behind - first
        # Such numbers are rounded: look for the first identity's record thereabouts.
        while end < len(keys) and self._holds_image(offsets[end]):
            end += 1
        while end > 1 and not self._holds_image(offsets[end - 1]):
            end -= 1
        return keys[1:end], offsets[1:end], len(keys) - end

    def _whole(self, keys: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Whether each record is inside the file: [n], bool; says so of those that are not."""
        whole = offsets < self._reader.size
        last = int(np.where(whole, offsets, -1).argmax()) if whole.any() else None
        if last is not None:
            try:
                self._reader.end(int(offsets[last]))
            except RecordCutOff:
                whole[last] = False
            except RecordError:  # damaged inside the file: met when it is read
                pass
        if not whole.all():
            message = (
                f"{self.source} is cut off: it ends at byte {self._reader.size}, before {(~whole).sum()} of the "
                f"{len(whole)} images of its .idx are whole, the first with key {keys[~whole][0]}"
            )
            if self.corrupt == "error":
                raise ValueError(f"{message}; get it again, or leave them out by corrupt='skip'")
            print_log(f"{message}; they are left out", logger="current", level=logging.WARNING)
        return whole

    def _header(self, keys: np.ndarray, offsets: np.ndarray) -> ImageRecord | None:
        """Record 0, if it is about the others: it has two labels and no image."""
        found = np.flatnonzero(keys == 0)
        if not len(found):
            return None
        try:
            record = unpack(self._reader.read(int(offsets[found[0]])))
        except RecordError as problem:
            raise ValueError(f"{self.source}: record 0, which describes the others, {problem}") from problem
        return record if len(record.labels) >= 2 and not record.image else None

    def _holds_image(self, offset: int) -> bool:
        try:
            return bool(unpack(self._reader.read(int(offset))).image)
        except RecordError:
            return True

    def _count_labels(self, keys: np.ndarray, offsets: np.ndarray) -> int:
        """How many identities the labels number, from one pass over the records' headers."""
        labels = set()
        for key, offset in zip(keys.tolist(), offsets.tolist(), strict=True):
            try:
                labels.add(_whole_label(peek(self._reader.read(offset, PEEK))[0]))
            except RecordError as problem:
                if self.corrupt == "error":
                    raise ValueError(f"{self.source}: the record with key {key} {problem}") from problem
        if not labels:
            raise ValueError(f"{self.source} has no record of an image that is whole")
        if len(labels) == 1:
            return 1
        if len(labels) <= max(labels):
            print_log(
                f"{self.source}: {len(labels)} of the labels 0 to {max(labels)} have images; the others cost memory "
                "and teach nothing",
                logger="current",
                level=logging.WARNING,
            )
        return max(labels) + 1

    def _names(self, num_classes: int) -> tuple[str, ...]:
        """The identities' names."""
        names = self._metainfo.get("classes")
        beside = Path(self.source).with_suffix(".json")
        if names is None and beside.is_file():
            names = json.loads(beside.read_text(encoding="utf-8"))["classes"]
        if names is None:
            names = map(str, range(num_classes))
        names = tuple(names)
        if len(names) != num_classes:
            raise ValueError(f"{self.source} has {num_classes} identities, but {len(names)} names came with it")
        return names

    def get_data_info(self, idx: int) -> dict:
        """Reads a record."""
        info = super().get_data_info(idx)
        name = f"{self.source}: the record with key {info['key']}"
        try:
            record = unpack(self._reader.read(info.pop("offset")))
            label = _whole_label(record.labels[0])
        except RecordError as problem:
            raise CorruptImage(f"{name} {problem}") from problem
        if label >= len(self._metainfo["classes"]):
            raise ValueError(f"{name} has the label {label}, but there are {len(self._metainfo['classes'])} identities")
        info.update(img_bytes=record.image, label=label, img_name=name)
        return info
