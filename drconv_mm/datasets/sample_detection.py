"""A sample detection data set in COCO format, drawn by this module: deterministic, in seconds, without a network.

Scenes of textured objects before a textured ground. Every object has a striped part and another part; the four classes
differ only by *where* the stripes are (above, below, in the core, along the rim). Shapes, colours and textures come
from one pool, so that nothing else tells the classes apart. Objects cover one another, and some scenes hold a heap of
tiny objects that is annotated as one crowd.

``python -m drconv_mm.datasets.sample_detection data/sample_detection``
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np

from .drawing import CLASSES, draw_scene
from .generated import SPLITS, check_at_least, new_data_set


def generate_sample_detection(
    root: str | Path, num_train: int = 240, num_val: int = 60, size: tuple[int, int] = (160, 120), seed: int = 0
) -> Path:
    """Writes the data set, or finds it there already.

    Args:
        root: Folder to make: ``annotations/instances_{train,val}.json``, ``train/*.png``, ``val/*.png``, ``meta.json``.
        num_train: Images to train on.
        num_val: Images to evaluate on.
        size: (width, height) of an image, pixels, at least 32 each.
        seed: Seed; the same arguments give the same bytes, and image i does not depend on how many there are.

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
            for split, count in zip(SPLITS, (num_train, num_val), strict=True):
                _write_split(draft, split, count, size, seed)
    return Path(root)


def _write_split(folder: Path, split: str, count: int, size: tuple[int, int], seed: int) -> None:
    images, annotations = [], []
    (folder / split).mkdir()
    (folder / "annotations").mkdir(exist_ok=True)
    for index in range(count):
        picture, objects = draw_scene(np.random.default_rng([seed, SPLITS.index(split), index]), size)
        name = f"{index:06d}.png"
        (folder / split / name).write_bytes(cv2.imencode(".png", picture)[1].tobytes())
        images.append({"id": index, "file_name": name, "width": size[0], "height": size[1]})
        for mask, label, crowd in objects:
            annotation = _annotation(mask, label, crowd)
            if annotation is not None:
                annotations.append({"id": len(annotations) + 1, "image_id": index, **annotation})
    categories = [{"id": i + 1, "name": name, "supercategory": "object"} for i, name in enumerate(CLASSES)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))


def _annotation(mask: np.ndarray, label: int, crowd: bool) -> dict | None:
    """The visible part of an object as COCO has it, or None if nothing is left that a polygon can hold."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if crowd:
        segmentation = _run_lengths(mask)
    else:
        # Contours run through pixel centres and lose slivers: four times as large, they hug the pixels' edges.
        large = cv2.resize(mask.astype(np.uint8), None, fx=4, fy=4, interpolation=cv2.INTER_NEAREST)
        contours = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
        segmentation = [((contour.ravel() + 0.5) / 4).tolist() for contour in contours if len(contour) >= 3]
    if not segmentation:
        return None
    left, top = int(columns[0]), int(rows[0])
    return {
        "category_id": label + 1,
        "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
        "area": int(mask.sum()),
        "iscrowd": int(crowd),
        "segmentation": segmentation,
    }


def _run_lengths(mask: np.ndarray) -> dict:
    """COCO's uncompressed run lengths: column by column, beginning with zeros."""
    changes = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=False))
    runs = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return {"size": list(mask.shape), "counts": runs.tolist()}


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
        root = generate_sample_detection(args.root, args.num_train, args.num_val, tuple(args.size), args.seed)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")
    print(f"{root}: {args.num_train} training and {args.num_val} validation images, classes {', '.join(CLASSES)}")


if __name__ == "__main__":
    main()
