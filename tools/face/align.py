#!/usr/bin/env python
"""Cut faces out of pictures, aligned by five landmarks to 112x112 (ArcFace's positions) or 112x96.

  align.py landmarks.csv --root photos --out aligned
  align.py landmarks.json --root photos --out aligned --size 112 96

Landmarks come from a detector of your choice, in pixels, in this order: left eye (in the picture), right eye, nose tip,
left mouth corner, right mouth corner. The file has a line a face, 'path x1 y1 ... x5 y5', parted by blanks, tabs or
commas (a first line with names is passed over), or is a JSON object {"path": [[x1, y1], ..., [x5, y5]], ...}. Paths are
relative to --root, and the faces get the same ones below --out.

A face that can't be aligned is named on the error stream, and the others go on; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track

from drconv_mm.datasets.face.alignment import align_face, is_mirrored
from drconv_mm.datasets.face.transforms import decode_image
from drconv_mm.files import draft_of


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("landmarks", type=Path, help="text, .csv or .json")
    parser.add_argument("--root", type=Path, default=Path(), help="folder that the paths are relative to (default: .)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the faces go")
    parser.add_argument("--size", type=int, nargs=2, default=(112, 112), metavar=("H", "W"),
                        help="112 112 (default) or 112 96")  # fmt: skip
    parser.add_argument("--quality", type=int, default=95, help="of JPEG faces (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="overwrite faces that are there")
    args = parser.parse_args(argv)
    if tuple(args.size) not in ((112, 112), (112, 96)):
        parser.error(f"--size must be 112 112 or 112 96, got {args.size[0]} {args.size[1]}")
    if not 1 <= args.quality <= 100:
        parser.error(f"--quality must be between 1 and 100, got {args.quality}")
    return args


def read_landmarks(path: Path) -> Iterator[tuple[str, str, np.ndarray | str]]:
    """Where each face's line is, its picture and its landmarks [5, 2]; in their place what is wrong with them, if so.

    Raises:
        ValueError: A .json that is none.
    """
    if path.suffix.lower() == ".json":
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as problem:
            raise ValueError(f"{path} is no JSON: {problem}") from problem
        if not isinstance(content, dict):
            raise ValueError(f'{path}: expected an object {{"path": [[x1, y1], ..., [x5, y5]]}}')
        for name, values in content.items():
            try:
                points = np.array(values, dtype=np.float64).reshape(5, 2)
            except (ValueError, TypeError):
                points = f"expected five pairs of numbers, got {values!r}"
            yield str(path), name, points
        return
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        # The path may have blanks in it: the numbers are the last ten fields.
        fields = (
            [field.strip() for field in re.split(r"[,\t]", line)]
            if re.search(r"[,\t]", line)
            else line.rsplit(None, 10)
        )
        if not line.strip():
            continue
        name, values = ",".join(fields[:-10]).strip('"'), fields[-10:]
        try:
            points = np.array([float(value) for value in values]).reshape(5, 2)
        except ValueError:
            if number == 1 and not any(re.fullmatch(r"-?[\d.]+", value) for value in values):
                continue
            points = f"expected 'path x1 y1 ... x5 y5', got {line!r}"
        yield f"{path}, line {number}", name, points


def align(picture: Path, landmarks: np.ndarray, out: Path, size: tuple[int, int], quality: int) -> None:
    """Writes one face.

    Raises:
        ValueError: The picture can't be decoded, or the landmarks are no face's.
        OSError: The picture can't be read, or the face not written.
    """
    face = align_face(decode_image(picture.read_bytes(), str(picture)), landmarks, size)
    try:
        written, data = cv2.imencode(out.suffix, face, [cv2.IMWRITE_JPEG_QUALITY, quality])
    except cv2.error:
        written = False
    if not written:
        raise ValueError(f"no picture format is called {out.suffix!r}")
    with draft_of(out) as draft:  # not write_whole: to wait for the disk after each of millions of faces takes hours
        draft.write_bytes(data.tobytes())


def main() -> None:
    """Aligns all faces."""
    args = parse_args()
    try:
        faces = list(read_landmarks(args.landmarks))
    except OSError as problem:
        sys.exit(f"align.py: error: {problem}; expected a file with lines 'path x1 y1 ... x5 y5', or JSON")
    except ValueError as problem:
        sys.exit(f"align.py: error: {problem}")
    if not faces:
        sys.exit(f"align.py: error: {args.landmarks} has no landmarks; expected lines 'path x1 y1 ... x5 y5'")
    failed = mirrored = 0
    console = Console(stderr=True)
    root, seen = args.out.resolve(), set()
    for where, name, landmarks in track(faces, "faces", console=console, disable=not console.is_terminal):
        out = args.out / name
        try:
            if isinstance(landmarks, str):
                raise ValueError(landmarks)
            place = out.resolve()
            if not place.is_relative_to(root):
                raise ValueError(f"the path leaves --out {str(args.out)!r}; give it relative to --root")
            if place in seen:
                raise ValueError("a second face of this picture; they would get one name")
            if out.exists() and not args.force:
                raise FileExistsError(f"{out} exists; name another folder, or give --force")
            align(args.root / name, landmarks, out, tuple(args.size), args.quality)
            seen.add(place)
            mirrored += is_mirrored(landmarks)
        except (OSError, ValueError) as problem:
            failed += 1
            print(f"{where}: {name}: {problem}", file=sys.stderr)
    print(f"{args.out}: {len(faces) - failed} faces of {args.size[0]}x{args.size[1]}, {failed} not aligned")
    if mirrored > (len(faces) - failed) / 2:
        print("most landmarks are mirrored: is the left eye in the picture given first?", file=sys.stderr)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
