from __future__ import annotations

import subprocess
import sys

import cv2
import pytest

from drconv_mm.datasets.image_folder import scan_image_folder
from drconv_mm.datasets.sample_classification import generate_sample_classification

from .test_sample_detection import digest


def test_layout_and_determinism(tmp_path):
    root = generate_sample_classification(tmp_path / "a", 3, 2, size=48)
    files, labels, classes = scan_image_folder(root / "train")
    assert classes == ["stripes_above", "stripes_below", "stripes_core", "stripes_rim"]
    assert labels == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert all(cv2.imread(str(file)).shape == (48, 48, 3) for file in files)
    assert digest(generate_sample_classification(tmp_path / "b", 3, 2, size=48)) == digest(root)
    fewer = digest(generate_sample_classification(tmp_path / "c", 2, 2, size=48))
    assert {name: value for name, value in fewer.items() if name != "meta.json"}.items() <= digest(root).items()
    assert generate_sample_classification(root, 3, 2, size=48) == root


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="num_val must be at least 1, got 0"):
        generate_sample_classification(tmp_path / "a", num_val=0)
    (tmp_path / "mine.txt").write_text("precious")
    done = subprocess.run(
        [sys.executable, "-m", "drconv_mm.datasets.sample_classification", tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 1 and "holds something else" in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "mine.txt").read_text() == "precious"
