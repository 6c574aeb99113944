"""Classification images in a folder a class, and messages that say what is wrong with the layout."""

from __future__ import annotations

from mmpretrain.datasets import CustomDataset

from ..registration import register_in
from .scan import scan_image_folder


@register_in("DATASETS")
class ImageFolder(CustomDataset):
    """mmpretrain's dataset of a folder a class (ImageNet's layout), with a check of the layout up front.

    ``dict(type='drconv_mm.datasets.image_folder.ImageFolder', data_root='data/caltech20', data_prefix='train')``

    Args:
        **arguments: As mmpretrain's ``CustomDataset``. ``metainfo=dict(classes=[...])`` chooses among the folders, and
            its order numbers them.

    Raises:
        FileNotFoundError: The layout is another.
    """

    def load_data_list(self) -> list[dict]:
        """Finds the images."""
        files, labels, classes = scan_image_folder(self.img_prefix, self.CLASSES)
        self._metainfo["classes"] = tuple(classes)
        return [dict(img_path=str(file), gt_label=label) for file, label in zip(files, labels, strict=True)]
