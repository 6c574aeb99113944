"""Identification: who of a gallery is it, among distractors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...registration import register_in
from ..scan import find_images, list_folder, scan_image_folder
from .base import FaceImageSet


@register_in("DATASETS")
class FaceIdentities(FaceImageSet):
    """Gallery, probes and distractors in three folders, as for MegaFace's protocol.

    ``dict(type='drconv_mm.FaceIdentities', data_root='data/megaface', pipeline=[...])``

    Gallery and probes are a folder a person, the same name being the same person; distractors are any images below
    their folder, of people who are in neither. A probe whose person is not in the gallery is for the open-set figures
    (TPIR@FPIR).

    An item, before the pipeline: ``img_path``, ``index``. ``metainfo['roles']``: array [n] of 'gallery', 'probe' or
    'distractor'. ``metainfo['identities']``: int64 [n], -1 for distractors. ``metainfo['people']``: the identities'
    names; they are no classes of a head.

    Args:
        data_root: Folder of the data.
        gallery: Folder of the gallery, relative to it.
        probe: Folder of the probes.
        distractor: Folder of the distractors; None for none.
        pipeline: Transforms.
        lazy_init: Whether to look for the images later.

    Raises:
        FileNotFoundError: A folder is missing, or has no images.
        ValueError: No probe's person is in the gallery.
    """

    def __init__(
        self,
        data_root: str,
        gallery: str = "gallery",
        probe: str = "probe",
        distractor: str | None = "distractor",
        pipeline: Sequence = (),
        lazy_init: bool = False,
    ):
        self._folders = dict(gallery=gallery, probe=probe, distractor=distractor)
        super().__init__(data_root, pipeline=pipeline, lazy_init=lazy_init)

    def load_data_list(self) -> list[dict]:
        """Finds the images."""
        files, roles, names, people = [], [], [], {}
        for role in ("gallery", "probe"):
            found, labels, people[role] = scan_image_folder(self.folder / self._folders[role])
            files += found
            roles += [role] * len(found)
            names += [people[role][label] for label in labels]
        identified = sorted({*people["gallery"], *people["probe"]})
        if not set(people["gallery"]) & set(people["probe"]):
            raise ValueError(
                f"{self.data_root}: no person of {self._folders['probe']!r} is in {self._folders['gallery']!r}; the "
                f"same person must have the same folder name, found {people['probe'][0]!r} and {people['gallery'][0]!r}"
            )
        number = {name: i for i, name in enumerate(identified)}
        identities = [number[name] for name in names]
        if self._folders["distractor"] is not None:
            folder = self.folder / self._folders["distractor"]
            found = find_images(folder) if folder.is_dir() else []
            if not found:
                there = list_folder(folder if folder.is_dir() else folder.parent)
                raise FileNotFoundError(
                    f"distractor: no image below {folder}, found {there}; distractor=None is for a set without"
                )
            files += found
            roles += ["distractor"] * len(found)
            identities += [-1] * len(found)
        arrays = dict(roles=np.array(roles), identities=np.array(identities, dtype=np.int64))
        for array in arrays.values():
            array.setflags(write=False)
        self._metainfo.update(people=tuple(identified), **arrays)
        return [dict(img_path=str(file)) for file in files]
