#!/usr/bin/env python
"""Pack face images into insightface's files: a training set's .rec/.idx, or a verification set's .bin.

  make_records.py PEOPLE train.rec                  a folder a person -> train.rec, train.idx, train.lst, train.json
  make_records.py IMAGES lfw.bin --pairs pairs.txt  pairs (LFW's form, or lines 'a b same') -> lfw.bin
  make_records.py --index train.rec                 a .rec without its .idx -> train.idx

The images go in as they are, byte by byte, unless --size or --quality asks for another JPEG. The .rec has insightface's
layout: record 0 describes the others, images have the keys 1, 2 ... in the order of the folders and their files, and
a record an identity follows. drconv_mm.FaceRecords and insightface's arcface_torch read it. train.lst maps keys to
labels and files (key, label, path; MXNet's form), and train.json has the identities' names.

Every image is decoded once, to see that it can be. Nothing gets its name before it is whole.
"""

from __future__ import annotations

import argparse
import json
import pickle
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import cv2
from rich.console import Console
from rich.progress import track

from drconv_mm.datasets.face.bin import FaceBin
from drconv_mm.datasets.face.folder import FaceFolder
from drconv_mm.datasets.face.pairs import FacePairs
from drconv_mm.datasets.face.recordio import RecordWriter, build_index, pack
from drconv_mm.datasets.face.transforms import CorruptImage, decode_image

EXACT = 1 << 24  # labels are float32


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="?", help="folder: a folder a person, or what the pairs are relative to")
    parser.add_argument("out", nargs="?", type=Path, help="file to write: .rec for training, .bin for verification")
    parser.add_argument("--pairs", metavar="FILE", help="pairs of the .bin, a path of its own or in IMAGES")
    parser.add_argument("--index", type=Path, metavar="FILE.rec", help="write this .rec's .idx, and do nothing else")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="resize to this, and encode as JPEG anew")
    parser.add_argument(
        "--quality", type=int, metavar="Q", help="encode as JPEG of this quality anew (with --size: 95)"
    )
    parser.add_argument("--corrupt", choices=("error", "skip"), default="error",
                        help="an image that can't be decoded ends it (default), or is left out of a .rec")  # fmt: skip
    parser.add_argument("--force", action="store_true", help="overwrite what is there")
    args = parser.parse_args(argv)
    if args.index is not None:
        if args.images or args.pairs or args.size or args.quality:
            parser.error("--index takes no other argument than --force")
        if args.index.suffix != ".rec":
            parser.error(f"--index: expected a .rec, got {str(args.index)!r}")
    elif args.out is None:
        parser.error("expected IMAGES and OUT, or --index FILE.rec")
    elif args.out.suffix not in (".rec", ".bin"):
        parser.error(f"OUT must end in .rec or .bin, got {str(args.out)!r}")
    elif (args.out.suffix == ".bin") != (args.pairs is not None):
        parser.error("--pairs goes with a .bin, and a .bin needs --pairs")
    elif args.out.suffix == ".bin" and args.corrupt == "skip":
        parser.error("--corrupt skip: a verification set can't leave images out")
    if args.size is not None and min(args.size) < 1:
        parser.error(f"--size must be at least 1 1, got {args.size}")
    if args.quality is not None and not 1 <= args.quality <= 100:
        parser.error(f"--quality must be between 1 and 100, got {args.quality}")
    return args


def refuse_to_overwrite(paths: Iterable[Path], force: bool) -> None:
    """Ends it where a file is there already.

    Raises:
        FileExistsError: One is, and ``force`` is not given.
    """
    there = [str(path) for path in paths if path.exists()]
    if there and not force:
        raise FileExistsError(f"{', '.join(there)} exists; name another file, or give --force")


def progress(items: Iterable, what: str) -> Iterable:
    """A bar on a terminal, nothing in a log file."""
    console = Console(stderr=True)
    return track(items, what, console=console, disable=not console.is_terminal)


def read_image(path: str, size: list[int] | None, quality: int | None) -> bytes:
    """The file's bytes as they are, or as another JPEG.

    Raises:
        CorruptImage: It can't be read or decoded.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as problem:
        raise CorruptImage(f"{path} can't be read: {problem.strerror}") from problem
    image = decode_image(data, path)
    if size is None and quality is None:
        return data
    if size is not None:
        shrinks = size[0] < image.shape[0]
        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality or 95])[1].tobytes()


def make_records(folder: str, out: Path, size: list[int] | None, quality: int | None, corrupt: str, force: bool) -> str:
    """Writes a training set; returns what it wrote, in words."""
    beside = [out.with_suffix(suffix) for suffix in (".rec", ".idx", ".lst", ".json")]
    refuse_to_overwrite(beside, force)
    people = FaceFolder(data_root=folder)
    classes = people.metainfo["classes"]
    if len(classes) > EXACT:
        raise ValueError(f"{folder} has {len(classes)} identities; the format's labels are exact up to {EXACT}")
    bounds = [[0, 0] for _ in classes]  # of each identity: the first key, and that behind the last
    key, skipped = 1, []
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.stem}-", dir=out.parent) as draft, RecordWriter(out) as writer:
        listing = Path(draft, "lst")
        with listing.open("w", encoding="utf-8") as lines:
            for index in progress(range(len(people)), "images"):
                info = people.get_data_info(index)
                path, label = info["img_path"], info["label"]
                try:
                    image = read_image(path, size, quality)
                except CorruptImage as problem:
                    if corrupt == "error":
                        raise
                    skipped.append(str(problem))
                    continue
                writer.write(key, pack(float(label), key, image))
                lines.write(f"{key}\t{label}\t{Path(path).relative_to(folder)}\n")
                bounds[label] = [bounds[label][0] or key, key + 1]
                key += 1
        if key == 1:
            raise ValueError(f"{folder} has no image that can be decoded; the first: {skipped[0]}")
        # insightface's layout: identities' records behind the images, and record 0, which says where they are.
        for offset, bound in enumerate(bounds):
            writer.write(key + offset, pack([float(x) for x in bound], key + offset, b""))
        writer.write(0, pack([float(key), float(key + len(classes))], 0, b""))
        names = Path(draft, "json")
        names.write_text(json.dumps({"classes": list(classes)}), encoding="utf-8")
        out.with_suffix(".idx").unlink(missing_ok=True)  # never an old set with new names
        listing.replace(beside[2])
        names.replace(beside[3])
    for line in skipped:
        print(f"left out: {line}", file=sys.stderr)
    return f"{out}: {key - 1} images of {len(classes)} people" + f", {len(skipped)} left out" * bool(skipped)


def make_bin(folder: str, pairs: str, out: Path, size: list[int] | None, quality: int | None, force: bool) -> str:
    """Writes a verification set; returns what it wrote, in words."""
    refuse_to_overwrite([out], force)
    pairs = str(Path(pairs).resolve()) if Path(pairs).is_file() else pairs
    images = FacePairs(folder, pairs)
    data = [
        read_image(images.get_data_info(index)["img_path"], size, quality)
        for index in progress(range(len(images)), "images")
    ]
    found = images.metainfo["pairs"]
    content = [data[i] for pair in zip(found["first"], found["second"], strict=True) for i in pair]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.stem}-", dir=out.parent) as draft:
        unfinished = Path(draft, out.name)
        with unfinished.open("wb") as file:
            pickle.dump((content, found["same"].tolist()), file, protocol=4)
        written = FaceBin(str(unfinished))  # reads it as a user will
        assert len(written.metainfo["pairs"]["same"]) == len(found["same"])
        unfinished.replace(out)
    return f"{out}: {len(found['same'])} pairs of {len(images)} images"


def make_index(path: Path, force: bool) -> str:
    """Writes a .rec's .idx; returns what it wrote, in words."""
    out = path.with_suffix(".idx")
    refuse_to_overwrite([out], force)
    keys, offsets, rest = build_index(path)
    with tempfile.TemporaryDirectory(prefix=f".{out.stem}-", dir=out.parent) as draft:
        unfinished = Path(draft, out.name)
        with unfinished.open("w") as lines:
            lines.writelines(f"{key}\t{offset}\n" for key, offset in zip(keys.tolist(), offsets.tolist(), strict=True))
        unfinished.replace(out)
    return f"{out}: {len(keys)} records" + f"; the last {rest} bytes of {path} are no whole record" * bool(rest)


def main() -> None:
    """Writes one set."""
    args = parse_args()
    try:
        if args.index is not None:
            print(make_index(args.index, args.force))
        elif args.out.suffix == ".bin":
            print(make_bin(args.images, args.pairs, args.out, args.size, args.quality, args.force))
        else:
            print(make_records(args.images, args.out, args.size, args.quality, args.corrupt, args.force))
    except (ValueError, OSError) as problem:
        sys.exit(f"make_records.py: error: {problem}")


if __name__ == "__main__":
    main()
