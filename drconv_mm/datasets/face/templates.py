"""Verification of templates, sets of images of one person each, by the 1:1 protocol of IJB-B and IJB-C."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...registration import register_in
from .base import FaceImageSet, check_images, pairs_of, read_fields


@register_in("DATASETS")
class FaceTemplates(FaceImageSet):
    """Templates to verify, from two lists as IJB-C has them.

    ``dict(type='drconv_mm.FaceTemplates', data_root='data/ijbc', data_prefix='crops',
    images='ijbc_face_tid_mid.txt', pairs='ijbc_template_pair_label.txt', pipeline=[...])``

    A line of ``images`` is ``name template media``: an image (relative to its folder), the template that it belongs to
    and the media item that it is from; frames of one video share one. Further fields are ignored. A line of ``pairs``
    is ``template1 template2 same``, same 0 or 1.

    An item, before the pipeline: ``img_path``, ``index``; the i-th is the list's i-th. ``metainfo['templates']`` and
    ``['media']``: int64 [n], of each item. ``metainfo['pairs']``: ``first``, ``second`` (int64 [P], template ids),
    ``same`` (bool [P]), ``folds`` (None).

    Args:
        data_root: Folder of the data.
        images: The list of images, relative to it.
        pairs: The list of pairs, relative to it.
        data_prefix: Folder of the images, relative to it.
        pipeline: Transforms.
        lazy_init: Whether to read the lists later.

    Raises:
        FileNotFoundError: A list is missing, or images that it names; one message for all.
        ValueError: A line has another form, or pairs name templates without images.
    """

    def __init__(
        self,
        data_root: str,
        images: str = "images.txt",
        pairs: str = "pairs.txt",
        data_prefix: str = "",
        pipeline: Sequence = (),
        lazy_init: bool = False,
    ):
        self._pairs = pairs
        super().__init__(data_root, data_prefix, images, pipeline, lazy_init)

    def load_data_list(self) -> list[dict]:
        """Reads the lists."""
        files, numbers = [], []
        for number, fields in read_fields(Path(self.ann_file), "images"):
            if len(fields) < 3 or not (fields[1].isdigit() and fields[2].isdigit()):
                raise ValueError(
                    f"{self.ann_file}, line {number}: expected 'name template media', the last two whole numbers, got "
                    f"{' '.join(fields)!r}"
                )
            files.append(self.folder / fields[0])
            numbers.append((int(fields[1]), int(fields[2])))
        if not files:
            raise ValueError(f"{self.ann_file} has no images; expected lines 'name template media'")
        check_images(files, self.ann_file)
        templates, media = np.array(numbers, dtype=np.int64).T.copy()
        for array in (templates, media):
            array.setflags(write=False)
        self._metainfo.update(templates=templates, media=media, pairs=self._read_pairs(templates))
        return [dict(img_path=str(file)) for file in files]

    def _read_pairs(self, templates: np.ndarray) -> dict:
        path = Path(self.data_root, self._pairs)
        if not path.is_file():
            raise FileNotFoundError(f"pairs {str(path)!r} is no file; expected lines 'template1 template2 same'")
        expected = f"{path}: expected lines 'template1 template2 same', whole numbers, same 0 or 1"
        try:
            first, second, same = np.loadtxt(path, dtype=np.int64, ndmin=2, comments=None).T.copy()
        except ValueError as problem:  # numpy's message has the line
            raise ValueError(f"{expected}; {problem}") from problem
        if same.size == 0 or not np.isin(same, (0, 1)).all():
            raise ValueError(expected)
        missing = np.setdiff1d(np.union1d(first, second), templates)
        if missing.size:
            raise ValueError(
                f"{path} names {missing.size} templates of which {self.ann_file} has no image: "
                f"{', '.join(map(str, missing[:5]))}{' ...' * (missing.size > 5)}"
            )
        return pairs_of(first, second, same, None)
