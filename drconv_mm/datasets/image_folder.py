"""Classification images in a folder a class, and messages that say what is wrong with the layout."""

from __future__ import annotations

from mmpretrain.datasets import CustomDataset

from ..registration import register_in
from .scan import EXTENSIONS, scan_image_folder


@register_in("DATASETS")
class ImageFolder(CustomDataset):
    """mmpretrain's dataset of a folder a class (ImageNet's layout), with a check of the layout up front.

    ``dict(type='drconv_mm.datasets.image_folder.ImageFolder', data_root='data/caltech20', data_prefix='train')``

    Args:
        data_root: As mmpretrain's ``CustomDataset``.
        data_prefix: The same.
        **arguments: The same, but for ``ann_file``, ``with_label`` and ``extensions``: labels are the folders'.
            ``metainfo=dict(classes=[...])`` chooses among the folders, and its order numbers them.

    Raises:
        FileNotFoundError: The layout is another.
        ValueError: ``ann_file``, ``with_label`` or ``extensions`` ask for something else than folders of images.
    """

    def __init__(self, data_root: str = "", data_prefix: str | dict = "", **arguments):
        for name, only in (("ann_file", ""), ("with_label", True), ("extensions", EXTENSIONS)):
            given = arguments.get(name, only)
            if (tuple(given) if name == "extensions" else given) != only:
                raise ValueError(
                    f"ImageFolder: {name}={given!r}, expected {only!r}: it reads folders of images and takes the "
                    "folders for labels; use mmpretrain's CustomDataset (or ImageNet) for another list of images"
                )
        super().__init__(data_root, data_prefix, **arguments)

    def load_data_list(self) -> list[dict]:
        """Finds the images."""
        files, labels, classes = scan_image_folder(self.img_prefix, self.CLASSES)
        self._metainfo["classes"] = tuple(classes)
        return [dict(img_path=str(file), gt_label=label) for file, label in zip(files, labels, strict=True)]
