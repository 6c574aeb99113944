"""Classification images in a folder a class, and messages that say what is wrong with the layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmengine.registry import DATASETS
from mmpretrain.datasets import CustomDataset

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif")


def scan_image_folder(
    folder: str | Path, classes: Sequence[str] | None = None
) -> tuple[list[Path], list[int], list[str]]:
    """The images of ``folder/<class>/``, subfolders included.

    Args:
        folder: The split's folder.
        classes: The classes wanted, whose order numbers them; None for all folders in alphabetical order.

    Returns:
        The files, their labels, and the classes' names.

    Raises:
        FileNotFoundError: The layout is another; the message says what was looked for and what is there.
    """
    folder = Path(folder)
    looked_for = f"looked for {folder}/<class>/<image>{{{','.join(EXTENSIONS)}}}"
    if not folder.is_dir():
        there = _listing(folder.parent) if folder.parent.is_dir() else "not even its parent folder"
        raise FileNotFoundError(f"{looked_for}, but there is no folder {folder}; found {there}")
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if not found:
        raise FileNotFoundError(f"{looked_for}, but {folder} has no class folders; found {_listing(folder)}")
    for name in classes or ():
        if name not in found:
            raise FileNotFoundError(f"{looked_for}, but there is no class folder {name!r}; found {_listing(folder)}")
    classes = list(classes or found)
    files, labels = [], []
    for label, name in enumerate(classes):
        images = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in EXTENSIONS)
        if not images:
            there = _listing(folder / name)
            raise FileNotFoundError(f"{looked_for}, but {folder / name} has no image; found {there}")
        files += images
        labels += [label] * len(images)
    return files, labels, classes


def _listing(folder: Path, most: int = 5) -> str:
    """What is in a folder, in a few words."""
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    return f"in {folder}: {', '.join(names[:most]) or 'nothing'}" + (
        f" and {len(names) - most} more" * (len(names) > most)
    )


@DATASETS.register_module()
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
