from __future__ import annotations

import re

import pytest

from drconv_mm.datasets.image_folder import ImageFolder, scan_image_folder
from drconv_mm.datasets.sample_classification import generate_sample_classification
from drconv_mm.datasets.scan import EXTENSIONS


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return generate_sample_classification(tmp_path_factory.mktemp("data") / "set", 2, 1, size=32)


def test_all_classes_or_some_in_their_order(root):
    data = ImageFolder(data_root=str(root), data_prefix="train")
    assert len(data) == 8 and data.metainfo["classes"][0] == "stripes_above"
    some = ImageFolder(
        data_root=str(root), data_prefix="train", metainfo=dict(classes=["stripes_rim", "stripes_below"])
    )
    assert [(info["gt_label"], info["img_path"].split("/")[-2]) for info in some] == [
        (0, "stripes_rim"), (0, "stripes_rim"), (1, "stripes_below"), (1, "stripes_below"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "folder, classes, message",
    [
        ("test", None, r"there is no folder \S+test; found in \S+: meta.json, train/, val/"),
        ("nothing/test", None, r"no folder \S+test; found not even its parent folder"),
        ("train/stripes_rim", None, r"has no class folders; found in \S+: 000000.png, 000001.png"),
        ("train", ["stripes_rim", "cat"], r"no class folder 'cat'; found in \S+: stripes_above/, .*stripes_rim/"),
    ],
)
def test_a_wrong_layout_says_what_was_looked_for_and_found(root, folder, classes, message):
    with pytest.raises(FileNotFoundError, match=r"looked for \S+/<class>/<image>\{.jpg,.*" + message):
        scan_image_folder(root / folder, classes)


def test_a_class_folder_without_an_image_is_an_error(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/a.json").touch()
    with pytest.raises(FileNotFoundError, match=r"looked for .*annotations has no image; found in \S+: a.json"):
        scan_image_folder(tmp_path)


def test_hidden_folders_are_no_classes_and_suffixes_may_be_capitals(tmp_path):
    left_out = (".cache/a.jpg", "cat/._b.jpg", "cat/.b.part.jpg", "cat/.trash/c.jpg")
    for name in (*left_out, "cat/b.JPG", "cat/d.jpg/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert scan_image_folder(tmp_path) == ([tmp_path / "cat/b.JPG"], [0], ["cat"])


@pytest.mark.parametrize("name, value", [("ann_file", "a.txt"), ("with_label", False), ("extensions", [".webp"])])
def test_what_it_does_not_read_is_an_error(root, name, value):
    message = re.escape(f"ImageFolder: {name}={value!r}, expected ") + ".*use mmpretrain's CustomDataset"
    with pytest.raises(ValueError, match=message):
        ImageFolder(data_root=str(root), data_prefix="train", **{name: value})
    harmless = dict(ann_file="", with_label=True, extensions=list(EXTENSIONS))
    assert len(ImageFolder(data_root=str(root), data_prefix="train", **harmless)) == 8


def test_a_long_listing_is_cut(tmp_path):
    for number in range(9):
        (tmp_path / f"{number}.txt").touch()
    with pytest.raises(FileNotFoundError) as caught:
        scan_image_folder(tmp_path)
    assert re.search("4.txt and 4 more$", str(caught.value))
