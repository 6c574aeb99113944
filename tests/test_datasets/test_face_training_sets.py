from __future__ import annotations

import importlib.util
import json
import pickle
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import ClassBalancedDataset, ConcatDataset, default_collate
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS
from torch.utils.data import DataLoader

from drconv_mm.datasets.face.folder import FaceFolder
from drconv_mm.datasets.face.recordio import MAGIC, RecordWriter, pack, read_index
from drconv_mm.datasets.face.records import FaceRecords
from drconv_mm.datasets.face.transforms import CorruptImage

PIPELINE = [
    dict(type="drconv_mm.datasets.face.LoadFace"),
    dict(type="drconv_mm.datasets.face.PackFace"),
]
PEOPLE = dict(Ann=3, Bob=2, Cid=4)


def load_tool(name):
    path = Path(__file__).parents[2] / "tools" / "face" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def people(tmp_path):
    """A folder a person, of noise; JPEG and PNG."""
    rng = np.random.default_rng(0)
    for name, count in PEOPLE.items():
        (tmp_path / "people" / name).mkdir(parents=True)
        for i in range(count):
            image = rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)
            cv2.imwrite(str(tmp_path / "people" / name / f"{i}.{'png' if i % 2 else 'jpg'}"), image)
    return tmp_path / "people"


@pytest.fixture
def records(people, tmp_path):
    load_tool("make_records").make_records(str(people), tmp_path / "train.rec", None, None, "error", False)
    return tmp_path / "train.rec"


@pytest.fixture
def logged(caplog):
    """With what mmengine's current logger says."""
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def test_folder(people):
    data = DATASETS.build(
        dict(type="drconv_mm.datasets.face.FaceFolder", data_root=str(people.parent), data_prefix="people",
             pipeline=PIPELINE)
    )  # fmt: skip
    assert data.metainfo["classes"] == ("Ann", "Bob", "Cid")
    assert [data[i]["label"] for i in range(len(data))] == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    expected = cv2.imread(str(people / "Bob" / "1.png"))[..., ::-1].transpose(2, 0, 1)
    assert data[4].keys() == {"inputs", "label"}
    assert torch.equal(data[4]["inputs"], torch.from_numpy(expected.copy()))
    batch = next(iter(DataLoader(data, 4, collate_fn=default_collate)))
    assert batch["inputs"].shape == (4, 3, 12, 10) and batch["inputs"].dtype == torch.uint8
    assert batch["label"].tolist() == [0, 0, 0, 1] and batch["label"].dtype == torch.int64


def test_folder_of_some_people(people):
    data = FaceFolder(str(people), metainfo=dict(classes=["Cid", "Ann"]))
    assert data.metainfo["classes"] == ("Cid", "Ann")
    assert [data[i]["label"] for i in range(len(data))] == [0] * 4 + [1] * 3


def test_one_identity_is_refused(people, tmp_path):
    with pytest.raises(ValueError, match="FaceFolder: .*people has one identity only, 'Bob'; .* at least two"):
        FaceFolder(str(people), metainfo=dict(classes=["Bob"]))
    for records in ([pack(0.0, 0, b"a"), pack(0.0, 1, b"b")], [pack([2.0, 3.0], 0, b""), pack(0.0, 1, b"a")]):
        with RecordWriter(tmp_path / "one.rec") as writer:
            for key, record in enumerate(records):
                writer.write(key, record)
        with pytest.raises(ValueError, match="FaceRecords: .*one.rec has one identity only, '0'"):
            FaceRecords(str(tmp_path), "one.rec")


def test_records_are_the_folder_byte_by_byte(people, records):
    folder, data = FaceFolder(str(people)), FaceRecords(str(records.parent))
    assert len(folder) == len(data) == 9 and data.metainfo == folder.metainfo
    data[0]  # the file is open when the workers start
    loaders = [DataLoader(d, 2, num_workers=2, collate_fn=lambda batch: batch) for d in (folder, data)]
    for ours, theirs in zip(*loaders, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert Path(a["img_path"]).read_bytes() == b["img_bytes"] and a["label"] == b["label"]
    decoded = FaceRecords(str(records.parent), pipeline=PIPELINE)
    for a, b in zip(FaceFolder(str(people), pipeline=PIPELINE), decoded, strict=False):
        assert torch.equal(a["inputs"], b["inputs"]) and a["label"] == b["label"]


def test_records_read_as_arcface_torch_reads_them(people, records):
    """Its MXFaceDataset, with MXNet's record and header spelled out."""
    raw = records.read_bytes()
    index = dict(tuple(map(int, line.split("\t"))) for line in records.with_suffix(".idx").read_text().splitlines())

    def read_idx(key):
        magic, word = struct.unpack_from("<II", raw, index[key])
        assert magic == MAGIC and word < 1 << 29
        record = raw[index[key] + 8 : index[key] + 8 + word]
        flag, label, _, _ = struct.unpack_from("IfQQ", record)
        labels = np.frombuffer(record, np.float32, flag, 24) if flag else label
        return labels, record[24 + 4 * flag :]

    header, empty = read_idx(0)
    assert empty == b"" and header.tolist() == [10, 13]
    folder = FaceFolder(str(people))
    for key in range(1, int(header[0])):
        label, image = read_idx(key)
        assert label == folder[key - 1]["label"] and image == Path(folder[key - 1]["img_path"]).read_bytes()
    ranges = [read_idx(key)[0].tolist() for key in range(int(header[0]), int(header[1]))]
    assert ranges == [[1, 4], [4, 6], [6, 10]]


def test_sets_without_record_0_and_labels_of_several_numbers(tmp_path, logged):
    records = [pack([2.0, 1.0], 0, b"c"), pack([0.0, 1.0], 1, b"a"), pack(2.0, 2, b"cc")]
    with RecordWriter(tmp_path / "train.rec") as writer:
        for key, record in zip((4, 3, 9), records, strict=True):
            writer.write(key, record)
    data = FaceRecords(str(tmp_path))
    assert [(d["label"], d["img_bytes"], d["key"]) for d in (data[i] for i in range(3))] == [
        (2, b"c", 4), (0, b"a", 3), (2, b"cc", 9),
    ]  # fmt: skip
    assert data.metainfo["classes"] == ("0", "1", "2")
    assert "train.rec: 2 of the labels 0 to 2 have images; the others cost memory" in logged.text
    data = FaceRecords(str(tmp_path), metainfo=dict(classes=["x", "y", "z"]))
    assert data.metainfo["classes"] == ("x", "y", "z")
    with pytest.raises(ValueError, match="has 3 identities, but 2 names came with it"):
        FaceRecords(str(tmp_path), metainfo=dict(classes=["x", "y"]))


def test_record_0_rounded_to_float32(tmp_path):
    """Beyond 2**24 float32 holds even numbers only: the end of the images is looked up."""
    last = (1 << 24) + 3
    for shift in (-2, 0, 2):
        keys = [0, last - 1, last, last + 1, last + 2]
        with RecordWriter(tmp_path / "train.rec") as writer:
            writer.write(0, pack([float(last + 1 + shift), float(last + 3)], 0, b""))
            for key, label in ((last - 1, 0.0), (last, 1.0)):
                writer.write(key, pack(label, key, b"image"))
            for key in keys[3:]:
                writer.write(key, pack([1.0, 2.0], key, b""))
        data = FaceRecords(str(tmp_path))
        assert [data[i]["key"] for i in range(len(data))] == [last - 1, last]
        assert len(data.metainfo["classes"]) == 2


def test_a_label_outside_the_identities_is_an_error(records):
    with RecordWriter(records) as writer:
        writer.write(0, pack([3.0, 5.0], 0, b""))
        writer.write(1, pack(0.0, 1, b"a"))
        writer.write(2, pack(5.0, 2, b"b"))
    records.with_suffix(".json").unlink()
    data = FaceRecords(str(records.parent))
    with pytest.raises(ValueError, match="record with key 2 has the label 5, but there are 2 identities"):
        data[1]


def test_a_missing_index_says_how_to_make_one(records):
    index = records.with_suffix(".idx")
    before = index.read_text()
    index.unlink()
    message = r"train.idx, the index of \S+train.rec, is missing; make it by `python tools/face/make_records.py --ind"
    with pytest.raises(FileNotFoundError, match=message):
        FaceRecords(str(records.parent))
    load_tool("make_records").make_index(records, False)
    assert index.read_text() == before


def test_other_files_are_refused(records):
    with pytest.raises(ValueError, match="is no RecordIO file"):
        FaceRecords(str(records.parent), "train.lst")
    with pytest.raises(FileNotFoundError, match="valid.rec is no file"):
        FaceRecords(str(records.parent), "valid.rec")


@pytest.mark.parametrize("corrupt", ["ignore", None, True])
def test_a_policy_of_another_name_is_refused(people, corrupt):
    with pytest.raises(ValueError, match="corrupt must be 'error' or 'skip'"):
        FaceFolder(str(people), corrupt=corrupt)


def test_an_evaluation_cannot_skip(people):
    with pytest.raises(ValueError, match="an evaluation can't leave images out"):
        FaceFolder(str(people), corrupt="skip", test_mode=True)


def damage(path, key):
    """Spoils a record's magic number."""
    keys, offsets = read_index(path.with_suffix(".idx"))
    raw = bytearray(path.read_bytes())
    raw[offsets[keys.tolist().index(key)]] ^= 0xFF
    path.write_bytes(raw)


def test_corrupt_images_are_errors_or_skipped(people, records):
    image = people / "Ann" / "1.png"
    image.write_bytes(image.read_bytes()[:-20])
    (people / "Cid" / "3.png").write_bytes(b"")
    damage(records, 2)
    damage(records, 9)
    for make in (lambda **a: FaceFolder(str(people), **a), lambda **a: FaceRecords(str(records.parent), **a)):
        data = make(pipeline=PIPELINE)
        with pytest.raises(CorruptImage, match=r"1.png is cut off after|record with key 2 has the bytes \w+ at"):
            data[1]
        with pytest.raises(CorruptImage, match=r"3.png is empty|record with key 9 has the bytes"):
            next(iter(DataLoader(data, 1, sampler=[8], num_workers=1)))
        data = make(pipeline=PIPELINE, corrupt="skip")
        assert torch.equal(data[1]["inputs"], data[2]["inputs"]) and data.num_skipped == 1
        assert torch.equal(data[8]["inputs"], data[0]["inputs"]) and data[8]["label"] == 0
        assert data.num_skipped == 2


def test_a_corrupt_record_in_a_balanced_set(records):
    damage(records, 2)
    with pytest.raises(CorruptImage, match="record with key 2"):
        ClassBalancedDataset(FaceRecords(str(records.parent)), 0.3)
    balanced = ClassBalancedDataset(FaceRecords(str(records.parent), corrupt="skip", pipeline=PIPELINE), 0.3)
    assert len(balanced) >= 9 and {int(balanced[i]["label"]) for i in range(len(balanced))} == {0, 1, 2}


def test_a_lazy_set_has_skipped_none(people):
    assert FaceFolder(str(people), corrupt="skip", lazy_init=True).num_skipped == 0


def test_key_0_may_be_an_image_of_several_labels(tmp_path):
    """As MXNet's im2rec packs them."""
    with RecordWriter(tmp_path / "train.rec") as writer:
        for key in (0, 1):
            writer.write(key, pack([float(key), 7.0], key, b"image"))
    data = FaceRecords(str(tmp_path))
    assert [data[i]["key"] for i in range(len(data))] == [0, 1]


def test_skipped_images_are_counted_over_workers_and_told_of_once(people, logged):
    for name in ("Ann/1.png", "Bob/0.jpg", "Cid/2.jpg"):
        (people / name).write_bytes(b"no image")
    data = FaceFolder(str(people), pipeline=PIPELINE, corrupt="skip")
    batches = list(DataLoader(data, 2, num_workers=2, collate_fn=default_collate))
    assert torch.cat([batch["label"] for batch in batches]).tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert data.num_skipped == 3
    data[1]
    assert "skipped" not in logged.text  # a worker told of it
    data = FaceFolder(str(people), pipeline=PIPELINE, corrupt="skip")
    for _ in range(2):
        for i in range(len(data)):
            data[i]
    messages = [record.getMessage() for record in logged.records]
    messages = [message for message in messages if "skipped" in message]
    assert len(messages) == 3
    assert "FaceFolder: skipped image 3: " in messages[1]
    assert messages[1].endswith("0.jpg can't be decoded: 8 bytes that begin with 6e6f2069; 2 of 9 so far")


def test_a_subset_counts_its_own_skipped_images(people):
    (people / "Ann/1.png").write_bytes(b"no image")
    data = FaceFolder(str(people), pipeline=PIPELINE, corrupt="skip")
    data[1]
    subset = data.get_subset([0, 2, 1])
    assert subset.num_skipped == 0
    subset[2]
    assert subset.num_skipped == data.num_skipped == 1
    data.get_subset_([1, 2])
    assert data.num_skipped == 0


@pytest.mark.parametrize("more, tries", [({}, 9), (dict(max_refetch=2), 3)])
def test_nothing_but_corrupt_images_is_an_error(people, more, tries):
    for path in people.rglob("*.*"):
        path.write_bytes(b"no image")
    with pytest.raises(CorruptImage, match=f"{tries} images in a row, from 4 on, are corrupt"):
        FaceFolder(str(people), pipeline=PIPELINE, corrupt="skip", **more)[4]


@pytest.mark.parametrize("header", [True, False])
def test_a_truncated_file(people, tmp_path, header):
    """Cut at the sixth image's begin, in its head, and in its bytes."""
    folder = FaceFolder(str(people))
    images = [(info["label"], Path(info["img_path"]).read_bytes()) for info in (folder[i] for i in range(9))]
    with RecordWriter(tmp_path / "train.rec") as writer:
        if header:
            writer.write(0, pack([10.0, 13.0], 0, b""))
        for key, (label, image) in enumerate(images, 1):
            writer.write(key, pack(float(label), key, image))
    offsets = read_index(tmp_path / "train.idx")[1].tolist()
    sixth, whole = offsets[5 + header], (tmp_path / "train.rec").read_bytes()
    for size in (sixth, sixth + 4, sixth + 40):
        (tmp_path / "train.rec").write_bytes(whole[:size])
        message = f"cut off: it ends at byte {size}, before 4 of the 9 images .* the first with key 6; get it again"
        with pytest.raises(ValueError, match=message):
            FaceRecords(str(tmp_path))
        data = FaceRecords(str(tmp_path), corrupt="skip", pipeline=PIPELINE)
        assert [data[i]["label"] for i in range(len(data))] == [0, 0, 0, 1, 1]
        assert len(data.metainfo["classes"]) == (3 if header else 2)
    (tmp_path / "train.rec").write_bytes(whole[: offsets[int(header)] + 8])
    with pytest.raises(ValueError, match="has no image; is it the .rec of a training set, and whole"):
        FaceRecords(str(tmp_path), corrupt="skip")


def test_a_damaged_record_0_is_an_error(records):
    damage(records, 0)
    with pytest.raises(ValueError, match="record 0, which describes the others, has the bytes"):
        FaceRecords(str(records.parent), corrupt="skip")


def test_records_are_small_picklable_and_an_mmengine_data_set(people, records):
    data = FaceRecords(str(records.parent), pipeline=PIPELINE, corrupt="skip")
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(again[3]["inputs"], data[3]["inputs"])
    assert data.data_list.keys.nbytes + data.data_list.offsets.nbytes == 16 * len(data)
    both = ConcatDataset([data, FaceRecords(str(records.parent), pipeline=PIPELINE)])
    assert len(both) == 18 and torch.equal(both[10]["inputs"], data[1]["inputs"])
    assert len(ClassBalancedDataset(data, 0.3)) > 9
    assert [d["label"] for d in (data.get_subset(3)[i] for i in range(3))] == [0, 0, 0]
    assert [d["label"] for d in (data.get_subset([8, 3])[i] for i in range(2))] == [2, 1]
    assert len(FaceRecords(str(records.parent), indices=4, corrupt="skip")) == 4
    lazy = FaceRecords(str(records.parent), pipeline=PIPELINE, lazy_init=True)
    assert not lazy._fully_initialized and len(lazy) == 9


def test_names_come_from_beside_the_records(records):
    assert json.loads(records.with_suffix(".json").read_text())["classes"] == ["Ann", "Bob", "Cid"]
    assert FaceRecords(str(records.parent)).metainfo["classes"] == ("Ann", "Bob", "Cid")
    records.with_suffix(".json").unlink()
    assert FaceRecords(str(records.parent)).metainfo["classes"] == ("0", "1", "2")


def test_real_faces(shared_data, tmp_path):
    folder = shared_data / "lfw_mini" / "train"
    load_tool("make_records").make_records(str(folder), tmp_path / "train.rec", None, None, "error", False)
    ours, theirs = FaceFolder(str(folder)), FaceRecords(str(tmp_path))
    assert len(ours) == len(theirs) == 1240 and ours.metainfo == theirs.metainfo
    for i in range(len(ours)):
        a, b = ours[i], theirs[i]
        assert Path(a["img_path"]).read_bytes() == b["img_bytes"] and a["label"] == b["label"]
