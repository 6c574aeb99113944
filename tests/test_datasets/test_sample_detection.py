from __future__ import annotations

import hashlib
import subprocess
import sys

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from drconv_mm.datasets.sample_detection import CLASSES, generate_sample_detection


def digest(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return generate_sample_detection(tmp_path_factory.mktemp("sample") / "set", num_train=40, num_val=5)


def test_same_arguments_same_bytes_and_images_do_not_depend_on_their_number(root, tmp_path):
    again = generate_sample_detection(tmp_path / "again", num_train=40, num_val=5)
    assert digest(again) == digest(root)
    fewer = generate_sample_detection(tmp_path / "fewer", num_train=3, num_val=2)
    assert (fewer / "train/000002.png").read_bytes() == (root / "train/000002.png").read_bytes()
    other = generate_sample_detection(tmp_path / "other", num_train=3, num_val=2, seed=1)
    assert (other / "train/000002.png").read_bytes() != (root / "train/000002.png").read_bytes()


def test_annotations_are_valid_coco(root):
    coco = COCO(str(root / "annotations/instances_train.json"))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    assert len({a["category_id"] for a in coco.anns.values()}) == 4
    assert any(a["iscrowd"] for a in coco.anns.values())
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation).astype(bool)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y, w, h = annotation["bbox"]
        assert abs(int(mask.sum()) - annotation["area"]) <= 0.05 * annotation["area"] + 2
        found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        assert np.abs(found - [x, y, x + w, y + h]).max() <= 1
        if annotation["iscrowd"]:
            assert mask.sum() == annotation["area"], "run lengths are exact"


def test_pictures_have_their_size(root):
    assert cv2.imread(str(root / "val/000004.png")).shape == (120, 160, 3)


def test_a_complete_set_is_reused_and_a_foreign_folder_refused(root, tmp_path):
    stamp = (root / "meta.json").stat().st_mtime_ns
    assert generate_sample_detection(root, num_train=40, num_val=5) == root
    assert (root / "meta.json").stat().st_mtime_ns == stamp
    with pytest.raises(FileExistsError, match="remove it or name another"):
        generate_sample_detection(root, num_train=41, num_val=5)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match="mine holds something else"):
        generate_sample_detection(tmp_path / "mine")


@pytest.mark.parametrize(
    "arguments, match",
    [
        (dict(num_train=0), "num_train must be at least 1, got 0"),
        (dict(num_val=-1), "num_val must be at least 1, got -1"),
        (dict(size=(160, 20)), "size must be at least 32, got 20"),
    ],
)
def test_bad_arguments(tmp_path, arguments, match):
    with pytest.raises(ValueError, match=match):
        generate_sample_detection(tmp_path / "set", **arguments)


def test_command_line(tmp_path):
    command = [sys.executable, "-m", "drconv_mm.datasets.sample_detection", str(tmp_path / "s"), "--num-train", "2"]
    done = subprocess.run([*command, "--num-val", "1"], capture_output=True, text=True, check=True)
    assert "2 training and 1 validation images" in done.stdout
    done = subprocess.run([*command, "--num-val", "0"], capture_output=True, text=True)
    assert done.returncode == 1 and "num_val must be at least 1" in done.stderr and "Traceback" not in done.stderr
