"""A sample classification data set, a folder a class, drawn by this package: one object in a picture, four classes.

Deterministic, in seconds, without a network. The classes differ only by where an object's stripes are.

``python -m drconv_mm.datasets.sample_classification data/sample_classification``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from .drawing import CLASSES, draw_background, draw_object
from .generated import SPLITS, check_at_least, new_data_set


def generate_sample_classification(
    root: str | Path, num_train: int = 60, num_val: int = 20, size: int = 112, seed: int = 0
) -> Path:
    """Writes the data set, or finds it there already.

    Args:
        root: Folder to make: ``{train,val}/<class>/*.png`` and ``meta.json``.
        num_train: Images of each class to train on.
        num_val: Images of each class to evaluate on.
        size: Side of an image, pixels, at least 32.
        seed: Seed; the same arguments give the same bytes, and image i does not depend on how many there are.

    Returns:
        ``root``.

    Raises:
        ValueError: An argument out of range.
        FileExistsError: ``root`` holds something else.
    """
    check_at_least(num_train=(num_train, 1), num_val=(num_val, 1), size=(size, 32))
    meta = {"num_train": num_train, "num_val": num_val, "size": size, "seed": seed, "version": 1}
    with new_data_set(root, meta) as draft:
        if draft is not None:
            for split, count in enumerate((num_train, num_val)):
                for label, name in enumerate(CLASSES):
                    folder = draft / SPLITS[split] / name
                    folder.mkdir(parents=True)
                    for index in range(count):
                        picture = _picture(np.random.default_rng([seed, split, label, index]), label, size)
                        (folder / f"{index:06d}.png").write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    return Path(root)


def _picture(rng: np.random.Generator, label: int, size: int) -> np.ndarray:
    """One object before a ground: [size, size, 3], uint8."""
    picture = draw_background(rng, (size, size))
    draw_object(rng, picture, label, rng.uniform(0.4, 0.6, 2) * size, rng.uniform(0.22, 0.38, 2) * size)
    noisy = cv2.GaussianBlur(picture, (3, 3), 0.6) + rng.normal(0, 5, picture.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="folder to make")
    parser.add_argument("--num-train", type=int, default=60, help="training images a class (default: %(default)s)")
    parser.add_argument("--num-val", type=int, default=20, help="validation images a class (default: %(default)s)")
    parser.add_argument("--size", type=int, default=112, help="side, pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed (default: %(default)s)")
    args = parser.parse_args()
    try:
        root = generate_sample_classification(args.root, args.num_train, args.num_val, args.size, args.seed)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")
    print(f"{root}: {args.num_train} training and {args.num_val} validation images of each of {', '.join(CLASSES)}")


if __name__ == "__main__":
    main()
