"""Verification sets in insightface's ``.bin``, read so that the file can't run code."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pathlib import Path

from ...registration import register_in
from .base import FaceImageSet, pairs_of


class _Encode:
    """Stands for ``_codecs.encode``, by which old protocols write bytes; has nothing that a file could change."""

    __slots__ = ()

    def __call__(self, text: str, encoding: str) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError(f"it encodes a {type(text).__name__} as {encoding!r}")
        return text.encode("latin1")


class _PlainUnpickler(pickle.Unpickler):
    """Builds tuples, lists, bytes, strings, numbers and bools; imports and calls nothing."""

    def find_class(self, module: str, name: str) -> object:
        """Refuses every name but ``_codecs.encode``, and does not look that one up either."""
        if (module, name) == ("_codecs", "encode"):
            return _Encode()
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_bin(path: str | Path) -> tuple[list[bytes], list[bool]]:
    """The encoded images of a ``.bin``, two a pair, and whether each pair is of one person.

    Args:
        path: A pickle of (images, same). It may hold tuples, lists, bytes, bools and numbers, and ``_codecs.encode``,
            by which old protocols write bytes.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds anything else, which might run code; or it is no such set.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; expected a verification set in insightface's .bin format")
    try:
        # Python 2 wrote its images as what Python 3 takes for text, unless it is told.
        content = _PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except Exception as problem:  # a damaged pickle raises anything
        what = " ".join(str(problem).split()).rstrip(".")
        raise ValueError(
            f"{path}: refused, {what}. A verification set holds tuples, lists, bytes and bools only; anything else "
            "might run code. Make the file anew from images by tools/face/make_records.py, or get it again"
        ) from problem
    expected = f"{path} is no verification set: expected a tuple of two lists, 2 P encoded images and P bools"
    if not isinstance(content, (tuple, list)) or len(content) != 2 or not all(isinstance(x, list) for x in content):
        raise ValueError(f"{expected}, found a {type(content).__name__}")
    images, same = content
    wrong = next((x for x in images if not isinstance(x, bytes)), None)
    if wrong is not None:
        raise ValueError(f"{expected}, found a {type(wrong).__name__} among the images")
    wrong = next((x for x in same if not (isinstance(x, int) and x in (0, 1))), None)
    if wrong is not None:
        raise ValueError(f"{expected}, found {wrong!r} among the bools")
    if len(images) != 2 * len(same) or not same:
        raise ValueError(f"{expected}, found {len(images)} images and {len(same)} bools")
    return images, [bool(x) for x in same]


@register_in("DATASETS")
class FaceBin(FaceImageSet):
    """Pairs to verify in insightface's ``.bin`` (``lfw.bin``, ``cfp_fp.bin``, ``agedb_30.bin`` ...).

    ``dict(type='drconv_mm.FaceBin', data_root='data/ms1m-retinaface-t1', ann_file='lfw.bin', pipeline=[...])``

    An image that is in several pairs is one item. An item, before the pipeline: ``img_bytes``, ``index``, ``img_name``.
    ``metainfo['pairs']``: ``first``, ``second`` (int64 [P], numbers of items), ``same`` (bool [P]), ``folds`` (None:
    the format has none; by convention the ten are of equal length, in order).

    Args:
        ann_file: The ``.bin``.
        data_root: Folder that it is in.
        pipeline: Transforms.
        lazy_init: Whether to read it later.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds what might run code, or is no such set.
    """

    def __init__(self, ann_file: str, data_root: str = "", pipeline: Sequence = (), lazy_init: bool = False):
        super().__init__(data_root=data_root, ann_file=ann_file, pipeline=pipeline, lazy_init=lazy_init)

    def load_data_list(self) -> list[dict]:
        """Reads the file."""
        images, same = read_bin(self.ann_file)
        numbers: dict[bytes, int] = {}
        indices = [numbers.setdefault(image, len(numbers)) for image in images]
        self._metainfo["pairs"] = pairs_of(indices[::2], indices[1::2], same, None)
        return [
            dict(img_bytes=image, img_name=f"{self.ann_file}: image {n} of {len(numbers)}")
            for image, n in numbers.items()
        ]
