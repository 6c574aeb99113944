from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest

from drconv_mm.datasets.sample_faces import generate_sample_faces

from .test_sample_detection import digest

FEW = dict(num_people=3, num_images=3, num_strangers=12, num_stranger_images=4, num_pairs=120)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return generate_sample_faces(tmp_path_factory.mktemp("sample") / "set", **FEW)


def lines(root):
    return [line.split() for line in (root / "pairs.txt").read_text().splitlines()]


def test_layout_and_determinism(root, tmp_path):
    folders = {
        split: {f.name: sorted(p.name for p in f.iterdir()) for f in (root / split).iterdir()}
        for split in ("train", "verify")
    }
    assert folders["train"] == {f"person_{k:04d}": ["0000.png", "0001.png", "0002.png"] for k in range(3)}
    assert len(folders["verify"]) == 12 and not set(folders["train"]) & set(folders["verify"])
    assert cv2.imread(str(root / "verify/stranger_0011/0003.png")).shape == (112, 112, 3)
    again = generate_sample_faces(tmp_path / "again", **FEW)
    assert digest(again) == digest(root)
    assert generate_sample_faces(root, **FEW) == root
    few = dict(num_people=2, num_images=2, num_strangers=2, num_stranger_images=2, num_pairs=4)
    fewer = digest(generate_sample_faces(tmp_path / "fewer", **few))
    images = {name: value for name, value in fewer.items() if name.endswith(".png")}
    assert len(images) == 8 and images.items() <= digest(root).items()
    other = generate_sample_faces(tmp_path / "other", **few, seed=1)
    assert not {value for name, value in digest(other).items() if name.endswith(".png")} & set(images.values())


def test_pairs_name_images_are_balanced_and_none_comes_twice(root):
    pairs = lines(root)
    assert len(pairs) == 120 and len({frozenset(pair[:2]) for pair in pairs}) == 120
    for first, second, same in pairs:
        assert first != second and (root / "verify" / first).is_file() and (root / "verify" / second).is_file()
        assert (first.split("/")[0] == second.split("/")[0]) == (same == "1")
    assert [same for _, _, same in pairs] == ["1", "0"] * 60


def accuracy(features: dict[str, np.ndarray], pairs: list[list[str]]) -> float:
    """The best accuracy that one threshold on the cosine gives."""
    unit = {name: value / np.linalg.norm(value) for name, value in features.items()}
    scores = np.array([unit[first] @ unit[second] for first, second, _ in pairs])
    same = np.array([label == "1" for *_, label in pairs])
    return max(((scores >= score) == same).mean() for score in scores)


def test_pixels_tell_little_of_who_it_is(root):
    pixels = {}
    for path in (root / "verify").rglob("*.png"):
        image = cv2.imread(str(path)).astype(np.float64).ravel()
        pixels[str(path.relative_to(root / "verify"))] = image - image.mean()
    # The threshold that is best for the pairs themselves, so a little more than by folds.
    assert 0.5 < accuracy(pixels, lines(root)) < 0.7


@pytest.mark.parametrize(
    "arguments, match",
    [
        (dict(num_people=1), "num_people must be at least 2, got 1"),
        (dict(num_images=0), "num_images must be at least 1, got 0"),
        (dict(size=16), "size must be at least 32, got 16"),
        (dict(num_strangers=3, num_stranger_images=2, num_pairs=8), "an even number of at most 6.*got 8"),
        (dict(num_pairs=3), "an even number of at most 600.*got 3"),
    ],
)
def test_bad_arguments(tmp_path, arguments, match):
    with pytest.raises(ValueError, match=match):
        generate_sample_faces(tmp_path / "set", **arguments)
    assert not any(tmp_path.iterdir())


def test_command_line(tmp_path):
    command = [sys.executable, "-m", "drconv_mm.datasets.sample_faces", str(tmp_path / "s"), "--num-people", "2"]
    command += ["--num-images", "1", "--num-strangers", "2", "--num-stranger-images", "2", "--num-pairs", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "1 images of each of 2 people to train on, 2 of 2 others, 4 pairs" in done.stdout
    (tmp_path / "s/thesis.tex").write_text("x")
    done = subprocess.run([*command, "--num-pairs", "2"], capture_output=True, text=True)
    assert done.returncode == 1 and "holds something else" in done.stderr and "Traceback" not in done.stderr
