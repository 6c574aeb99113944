from __future__ import annotations

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from drconv_mm.datasets.sample_detection import generate_sample_detection
from drconv_mm.datasets.sample_segmentation import CLASSES, VOID, generate_sample_segmentation

from .test_sample_detection import digest


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return generate_sample_segmentation(tmp_path_factory.mktemp("sample") / "set", num_train=20, num_val=3)


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def test_layout_and_determinism(root, tmp_path):
    for split, count in (("train", 20), ("val", 3)):
        names = [f"{index:06d}.png" for index in range(count)]
        for kind in ("img_dir", "ann_dir"):
            assert sorted(path.name for path in (root / kind / split).iterdir()) == names
    assert read(root / "img_dir/val/000002.png").shape == (120, 160, 3)
    labels = [read(path) for path in sorted((root / "ann_dir/train").iterdir())]
    assert {(label.shape, label.dtype) for label in labels} == {((120, 160), np.dtype("uint8"))}
    assert set(np.unique(labels)) == {*range(len(CLASSES)), VOID}
    fewer = digest(generate_sample_segmentation(tmp_path / "fewer", num_train=2, num_val=1))
    assert {name: value for name, value in fewer.items() if name != "meta.json"}.items() <= digest(root).items()
    assert digest(generate_sample_segmentation(tmp_path / "again", num_train=2, num_val=1)) == fewer
    assert generate_sample_segmentation(root, num_train=20, num_val=3) == root


def test_the_scenes_and_labels_are_those_of_the_detection_set(root, tmp_path):
    detection = generate_sample_detection(tmp_path / "detection", num_train=20, num_val=3)
    coco = COCO(str(detection / "annotations/instances_train.json"))
    for index, image in coco.imgs.items():
        name = image["file_name"]
        assert (root / "img_dir/train" / name).read_bytes() == (detection / "train" / name).read_bytes()
        labels = read(root / "ann_dir/train" / name)
        areas = dict.fromkeys((1, 2, 3, 4, VOID), 0)
        for annotation in coco.imgToAnns[index]:
            areas[VOID if annotation["iscrowd"] else annotation["category_id"]] += annotation["area"]
        # Slivers of objects that no polygon holds have no annotation, but pixels.
        assert all(abs(int((labels == label).sum()) - area) <= 4 for label, area in areas.items())


def test_mmseg_reads_it(root):
    pytest.importorskip("mmseg")
    from mmseg.datasets import BaseSegDataset

    for split, count in (("train", 20), ("val", 3)):
        dataset = BaseSegDataset(
            data_root=str(root),
            data_prefix=dict(img_path=f"img_dir/{split}", seg_map_path=f"ann_dir/{split}"),
            img_suffix=".png",
            metainfo=dict(classes=CLASSES),
        )
        assert len(dataset) == count and dataset.get_data_info(0)["seg_map_path"].endswith("000000.png")


def test_errors(root, tmp_path):
    with pytest.raises(ValueError, match="num_train must be at least 1, got 0"):
        generate_sample_segmentation(tmp_path / "a", num_train=0)
    with pytest.raises(ValueError, match="size must be at least 32, got 20"):
        generate_sample_segmentation(tmp_path / "a", size=(160, 20))
    with pytest.raises(FileExistsError, match="remove it or name another"):
        generate_sample_segmentation(root, num_train=21, num_val=3)


def test_command_line(tmp_path):
    command = [sys.executable, "-m", "drconv_mm.datasets.sample_segmentation", str(tmp_path / "s"), "--num-train", "2"]
    done = subprocess.run([*command, "--num-val", "1"], capture_output=True, text=True, check=True)
    assert "2 training and 1 validation images" in done.stdout
    assert json.loads((tmp_path / "s/meta.json").read_text())["num_train"] == 2
    done = subprocess.run([*command, "--num-val", "0"], capture_output=True, text=True)
    assert done.returncode == 1 and "num_val must be at least 1" in done.stderr and "Traceback" not in done.stderr
