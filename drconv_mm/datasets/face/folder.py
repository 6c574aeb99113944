"""Training faces in a folder a person."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...registration import register_in
from ..scan import scan_image_folder
from .base import FaceTrainingSet


@register_in("DATASETS")
class FaceFolder(FaceTrainingSet):
    """Faces to train on, a folder a person.

    ``dict(type='drconv_mm.FaceFolder', data_root='data/lfw_mini', data_prefix='train', pipeline=[...])``

    An item, before the pipeline: ``img_path``, ``label``. ``metainfo['classes']``: the folders' names.

    Args:
        data_root: Folder of the data.
        data_prefix: Folder in it that holds the people's.
        metainfo: ``dict(classes=[...])`` chooses among the people, and its order numbers them; else all, by the
            alphabet.
        pipeline: Transforms.
        corrupt: ``'error'`` or ``'skip'``, see `FaceTrainingSet`.
        **kwargs: As mmengine's ``BaseDataset``: ``lazy_init``, ``indices``, ...

    Raises:
        FileNotFoundError: The layout is another.
        ValueError: There is one identity only.
    """

    def __init__(
        self,
        data_root: str = "",
        data_prefix: str = "",
        metainfo: dict | None = None,
        pipeline: Sequence = (),
        corrupt: str = "error",
        **kwargs,
    ):
        super().__init__(
            data_root=data_root,
            data_prefix=dict(img_path=data_prefix),
            metainfo=metainfo,
            pipeline=list(pipeline),
            corrupt=corrupt,
            **kwargs,
        )

    @property
    def source(self) -> str:
        """The folder."""
        return str(Path(self.data_prefix["img_path"]))

    def load_data_list(self) -> list[dict]:
        """Finds the images."""
        files, labels, classes = scan_image_folder(self.source, self._metainfo.get("classes"))
        self._metainfo["classes"] = tuple(classes)
        return [dict(img_path=str(file), label=label) for file, label in zip(files, labels, strict=True)]
