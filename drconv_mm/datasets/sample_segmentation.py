"""A sample segmentation data set, drawn by this package: the scenes of the sample detection set with a label a pixel.

Deterministic, in seconds, without a network. Labels are train ids: 0 is the background, 1 to 4 are the classes of
objects, which differ only by where the stripes are, and 255 is void: the heaps of objects too tiny to tell.

``python -m drconv_mm.datasets.sample_segmentation data/sample_segmentation``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from .drawing import CLASSES as OBJECTS
from .drawing import draw_scene
from .generated import SPLITS, check_at_least, new_data_set

CLASSES = ("background", *OBJECTS)
VOID = 255


def generate_sample_segmentation(
    root: str | Path, num_train: int = 240, num_val: int = 60, size: tuple[int, int] = (160, 120), seed: int = 0
) -> Path:
    """Writes the data set, or finds it there already.

    Args:
        root: Folder to make: ``img_dir/{train,val}/*.png``, ``ann_dir/{train,val}/*.png`` with the same names (one
            channel of train ids, uint8) and ``meta.json``.
        num_train: Images to train on.
        num_val: Images to evaluate on.
        size: (width, height) of an image, pixels, at least 32 each.
        seed: Seed; the same arguments give the same bytes, and image i does not depend on how many there are. The
            images are those of ``generate_sample_detection`` with the same seed and size.

    Returns:
        ``root``.

    Raises:
        ValueError: An argument out of range.
        FileExistsError: ``root`` holds something else.
    """
    check_at_least(num_train=(num_train, 1), num_val=(num_val, 1), size=(min(size), 32))
    meta = {"num_train": num_train, "num_val": num_val, "size": list(size), "seed": seed, "version": 1}
    with new_data_set(root, meta) as draft:
        if draft is not None:
            for split, count in enumerate((num_train, num_val)):
                folders = [draft / kind / SPLITS[split] for kind in ("img_dir", "ann_dir")]
                for folder in folders:
                    folder.mkdir(parents=True)
                for index in range(count):
                    picture, objects = draw_scene(np.random.default_rng([seed, split, index]), size)
                    for folder, pixels in zip(folders, (picture, _labels(objects, size)), strict=True):
                        (folder / f"{index:06d}.png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return Path(root)


def _labels(objects: list[tuple[np.ndarray, int, bool]], size: tuple[int, int]) -> np.ndarray:
    """Train ids [H, W], uint8."""
    labels = np.zeros(size[::-1], np.uint8)
    for mask, label, crowd in objects:
        labels[mask] = VOID if crowd else label + 1
    return labels


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="folder to make")
    parser.add_argument("--num-train", type=int, default=240, help="images to train on (default: %(default)s)")
    parser.add_argument("--num-val", type=int, default=60, help="images to evaluate on (default: %(default)s)")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(160, 120), metavar=("W", "H"), help="size, pixels (default: 160 120)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed (default: %(default)s)")
    args = parser.parse_args()
    try:
        root = generate_sample_segmentation(args.root, args.num_train, args.num_val, tuple(args.size), args.seed)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")
    print(f"{root}: {args.num_train} training and {args.num_val} validation images, classes {', '.join(CLASSES)}")


if __name__ == "__main__":
    main()
