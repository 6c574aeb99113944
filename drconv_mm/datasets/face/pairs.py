"""Verification sets as folders of images with a list of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...registration import register_in
from ..scan import EXTENSIONS
from .base import FaceImageSet, check_images, pairs_of, read_fields

_FORMS = (
    "expected LFW's form (a first line with the number of pairs, or of folds and of pairs in a fold; then lines "
    "'name i j' or 'name1 i name2 j') or lines 'a b same', same 0 or 1"
)
_REMEDY = "part the fields by tabs where names have blanks"


@register_in("DATASETS")
class FacePairs(FaceImageSet):
    """Pairs of images to verify, from a ``pairs.txt``.

    ``dict(type='drconv_mm.FacePairs', data_root='data/lfw_mini', data_prefix='verify', pipeline=[...])``

    Two forms of the list are known. LFW's: a first line ``10 300`` (folds, pairs of each kind in a fold) or ``500``
    (pairs of each kind), then for each fold lines ``name i j`` (one person) and as many ``name1 i name2 j`` (two),
    where image i of a person is ``name/name_000i.jpg``. And lines ``a b same``, with paths relative to the images'
    folder and same 0 or 1. Fields are parted by tabs where a line has some, else by blanks.

    An item, before the pipeline: ``img_path``, ``index``. ``metainfo['pairs']``: ``first``, ``second`` (int64 [P],
    numbers of items), ``same`` (bool [P]), ``folds`` (int64 [P], or None where the list has none).

    Args:
        data_root: Folder of the data.
        pairs: The list, relative to it.
        data_prefix: Folder of the images, relative to it.
        pipeline: Transforms.
        lazy_init: Whether to read the list later.

    Raises:
        FileNotFoundError: The list is missing, or images that it names; one message for all.
        ValueError: A line has another form.
    """

    def __init__(
        self,
        data_root: str,
        pairs: str = "pairs.txt",
        data_prefix: str = "",
        pipeline: Sequence = (),
        lazy_init: bool = False,
    ):
        super().__init__(data_root, data_prefix, pairs, pipeline, lazy_init)

    def load_data_list(self) -> list[dict]:
        """Reads the list."""
        lines = list(read_fields(Path(self.ann_file), "pairs"))
        if not lines:
            raise ValueError(f"{self.ann_file} has no pairs; {_FORMS}")
        head = lines[0][1]
        official = len(head) <= 2 and all(field.isdigit() for field in head)
        pairs = self._official(lines) if official else [self._plain(*line) for line in lines]
        numbers: dict[Path, int] = {}
        indices = [numbers.setdefault(path, len(numbers)) for pair in pairs for path in pair[:2]]
        check_images(list(numbers), self.ann_file)
        folds = None
        if official and len(head) == 2:
            per_fold = 2 * int(head[1])
            folds = [row // per_fold for row in range(len(pairs))]
        self._metainfo["pairs"] = pairs_of(indices[::2], indices[1::2], [pair[2] for pair in pairs], folds)
        return [dict(img_path=str(path)) for path in numbers]

    def _plain(self, number: int, fields: list[str]) -> tuple[Path, Path, bool]:
        """A line ``a b same``."""
        if len(fields) != 3 or fields[2] not in ("0", "1"):
            raise ValueError(f"{self.ann_file}, line {number}: {_FORMS}, got {' '.join(fields)!r}; {_REMEDY}")
        return self.folder / fields[0], self.folder / fields[1], fields[2] == "1"

    def _official(self, lines: list[tuple[int, list[str]]]) -> list[tuple[Path, Path, bool]]:
        """LFW's form."""
        *folds, per_kind = (int(field) for field in lines[0][1])
        expected = 2 * per_kind * (folds[0] if folds else 1)
        if len(lines) - 1 != expected or not expected:
            raise ValueError(
                f"{self.ann_file}: its first line announces {expected} pairs, half of them of one person; it has "
                f"{len(lines) - 1}"
            )
        pairs = []
        for row, (number, fields) in enumerate(lines[1:]):
            same = row // per_kind % 2 == 0
            images = fields[1:] if same else fields[1::2]
            if len(fields) != (3 if same else 4) or not all(image.isdigit() for image in images):
                form = "'name i j'" if same else "'name1 i name2 j'"
                got = f"got {' '.join(fields)!r}; {_REMEDY}"
                raise ValueError(f"{self.ann_file}, line {number}: expected {form}, {got}")
            pairs.append((self._image(fields[0], images[0]), self._image(fields[0 if same else 2], images[1]), same))
        return pairs

    def _image(self, name: str, number: str) -> Path:
        """Image of a person in LFW's layout; .jpg there, and in copies of it what else it may be."""
        stem = self.folder / name / f"{name}_{int(number):04d}"
        candidates = [stem.with_name(stem.name + extension) for extension in EXTENSIONS]
        return next((path for path in candidates if path.is_file()), candidates[0])
