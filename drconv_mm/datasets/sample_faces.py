"""A sample set of identities, drawn by this package: people to train on, other people to verify, and pairs of these.

Deterministic, in seconds, without a network. What makes a person (head, skin, hair, eyes, brows, nose, mouth) stays the
same in all pictures of them; pose, place, light, expression, ground, glasses and noise change from one to the next.

``python -m drconv_mm.datasets.sample_faces data/sample_faces``
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np

from .face_drawing import Person, draw_face
from .generated import check_at_least, new_data_set

SPLITS = ("train", "verify")
_NAMES = ("person", "stranger")


def generate_sample_faces(
    root: str | Path,
    num_people: int = 40,
    num_images: int = 15,
    num_strangers: int = 30,
    num_stranger_images: int = 5,
    num_pairs: int = 400,
    size: int = 112,
    seed: int = 0,
) -> Path:
    """Writes the data set, or finds it there already.

    Args:
        root: Folder to make: ``train/<person>/*.png``, ``verify/<stranger>/*.png``, ``pairs.txt`` with lines
            ``<image> <image> <1 if they show the same person, else 0>``, relative to ``verify``, and ``meta.json``.
        num_people: People to train on.
        num_images: Images of each of them.
        num_strangers: Other people, to verify.
        num_stranger_images: Images of each of these.
        num_pairs: Pairs, half of them of one person, in turn; none twice.
        size: Side of an image, pixels, at least 32.
        seed: Seed; the same arguments give the same bytes, and image i of person k does not depend on how many there
            are.

    Returns:
        ``root``.

    Raises:
        ValueError: An argument out of range, or more pairs than there are.
        FileExistsError: ``root`` holds something else.
    """
    least = dict(num_people=2, num_images=1, num_strangers=2, num_stranger_images=2, num_pairs=2, size=32)
    given = dict(
        num_people=num_people,
        num_images=num_images,
        num_strangers=num_strangers,
        num_stranger_images=num_stranger_images,
        num_pairs=num_pairs,
        size=size,
    )
    check_at_least(**{name: (value, least[name]) for name, value in given.items()})
    most = min(
        num_strangers * num_stranger_images * (num_stranger_images - 1),
        num_strangers * (num_strangers - 1) * num_stranger_images**2,
    )
    if num_pairs > most or num_pairs % 2:
        raise ValueError(
            f"num_pairs must be an even number of at most {most}, as {num_strangers} strangers with "
            f"{num_stranger_images} images each have, got {num_pairs}"
        )
    with new_data_set(root, {**given, "seed": seed, "version": 1}) as draft:
        if draft is not None:
            counts = ((num_people, num_images), (num_strangers, num_stranger_images))
            for split, (people, images) in enumerate(counts):
                for number in range(people):
                    folder = draft / SPLITS[split] / f"{_NAMES[split]}_{number:04d}"
                    _draw_person(folder, images, size, [seed, split, number])
            pairs = _pairs(np.random.default_rng([seed, 2]), num_strangers, num_stranger_images, num_pairs)
            (draft / "pairs.txt").write_text("".join(f"{first} {second} {same}\n" for first, second, same in pairs))
    return Path(root)


def _draw_person(folder: Path, count: int, size: int, seed: list[int]) -> None:
    person = Person.random(np.random.default_rng(seed))
    folder.mkdir(parents=True)
    for index in range(count):
        picture = draw_face(person, np.random.default_rng([*seed, index]), size)
        (folder / f"{index:04d}.png").write_bytes(cv2.imencode(".png", picture)[1].tobytes())


def _pairs(rng: np.random.Generator, people: int, images: int, count: int) -> list[tuple[str, str, int]]:
    """Pairs of one person and of two, in turn, so that any run of them is balanced."""
    everyone = [(person, image) for person in range(people) for image in range(images)]
    alike, unlike = [], []
    for first, second in combinations(everyone, 2):
        (alike if first[0] == second[0] else unlike).append((first, second))
    chosen = [[pairs[i] for i in rng.permutation(len(pairs))[: count // 2]] for pairs in (alike, unlike)]
    return [
        (*(f"{_NAMES[1]}_{person:04d}/{image:04d}.png" for person, image in pair), same)
        for pairs in zip(*chosen, strict=True)
        for pair, same in zip(pairs, (1, 0), strict=True)
    ]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="folder to make")
    parser.add_argument("--num-people", type=int, default=40, help="people to train on (default: %(default)s)")
    parser.add_argument("--num-images", type=int, default=15, help="images of each (default: %(default)s)")
    parser.add_argument("--num-strangers", type=int, default=30, help="people to verify (default: %(default)s)")
    parser.add_argument("--num-stranger-images", type=int, default=5, help="images of each (default: %(default)s)")
    parser.add_argument("--num-pairs", type=int, default=400, help="pairs to verify (default: %(default)s)")
    parser.add_argument("--size", type=int, default=112, help="side, pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed (default: %(default)s)")
    args = parser.parse_args()
    try:
        root = generate_sample_faces(**vars(args))
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")
    print(
        f"{root}: {args.num_images} images of each of {args.num_people} people to train on, "
        f"{args.num_stranger_images} of {args.num_strangers} others, {args.num_pairs} pairs"
    )


if __name__ == "__main__":
    main()
