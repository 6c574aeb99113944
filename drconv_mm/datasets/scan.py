"""Finds images in folders, with messages that say what is wrong with the layout."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif")


def scan_image_folder(
    folder: str | Path, classes: Sequence[str] | None = None
) -> tuple[list[Path], list[int], list[str]]:
    """The images of ``folder/<class>/``, subfolders included; hidden folders are no classes.

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
        there = list_folder(folder.parent) if folder.parent.is_dir() else "not even its parent folder"
        raise FileNotFoundError(f"{looked_for}, but there is no folder {folder}; found {there}")
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        raise FileNotFoundError(f"{looked_for}, but {folder} has no class folders; found {list_folder(folder)}")
    for name in classes or ():
        if name not in found:
            raise FileNotFoundError(f"{looked_for}, but there is no class folder {name!r}; found {list_folder(folder)}")
    classes = list(classes or found)
    files, labels = [], []
    for label, name in enumerate(classes):
        images = find_images(folder / name)
        if not images:
            there = list_folder(folder / name)
            raise FileNotFoundError(f"{looked_for}, but {folder / name} has no image; found {there}")
        files += images
        labels += [label] * len(images)
    return files, labels, classes


def find_images(folder: Path) -> list[Path]:
    """All images in a folder and its subfolders, sorted; what is hidden (``._a.jpg`` of a Mac) is left out."""
    found = []
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(where, name) for name in files if not name.startswith("."))
        found += [path for path in paths if path.suffix.lower() in EXTENSIONS]
    return sorted(found)


def list_folder(folder: Path, most: int = 5) -> str:
    """What is in a folder, in a few words."""
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    return f"in {folder}: {', '.join(names[:most]) or 'nothing'}" + (
        f" and {len(names) - most} more" * (len(names) > most)
    )
