from __future__ import annotations

import codecs
import os
import pickle
import re
from collections import OrderedDict

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS

from drconv_mm.datasets.face.bin import FaceBin, read_bin
from drconv_mm.datasets.face.identities import FaceIdentities
from drconv_mm.datasets.face.pairs import FacePairs
from drconv_mm.datasets.face.templates import FaceTemplates

PIPELINE = [
    dict(type="drconv_mm.datasets.face.LoadFace"),
    dict(type="drconv_mm.datasets.face.PackFace"),
]


def picture(number):
    return np.full((8, 8, 3), number, dtype=np.uint8)


def encoded(number):
    return cv2.imencode(".png", picture(number))[1].tobytes()


def write_images(folder, names):
    """Each image is as bright as its place in the list."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(number))


def brightness(data):
    """Of each item, and its index."""
    items = [data[i] for i in range(len(data))]
    assert all(item.keys() == {"inputs", "index"} for item in items)
    return [int(item["inputs"].max()) for item in items], [item["index"] for item in items]


class TestBin:
    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_reads_every_protocol(self, tmp_path, protocol):
        images, same = [encoded(i) for i in (3, 5, 3, 7, 7, 5)], [True, False, False]
        (tmp_path / "lfw.bin").write_bytes(pickle.dumps((images, same), protocol=protocol))
        assert read_bin(tmp_path / "lfw.bin") == (images, same)
        data = DATASETS.build(
            dict(type="drconv_mm.datasets.face.FaceBin", data_root=str(tmp_path), ann_file="lfw.bin", pipeline=PIPELINE)
        )
        assert brightness(data) == ([3, 5, 7], [0, 1, 2])  # each image once
        pairs = data.metainfo["pairs"]
        assert pairs["first"].tolist() == [0, 0, 2] and pairs["second"].tolist() == [1, 2, 1]
        assert pairs["same"].tolist() == same and pairs["same"].dtype == bool and pairs["first"].dtype == np.int64
        assert pairs["folds"] is None

    def test_reads_python_2_files(self, tmp_path):
        """Protocol 2 of Python 2: str is written as SHORT_BINSTRING, and True as the opcode of its own."""
        image = bytes(range(128, 200))
        raw = b"\x80\x02(]" + b"".join(b"U" + bytes([len(image)]) + image + b"a" for _ in range(2)) + b"]\x88at."
        (tmp_path / "lfw.bin").write_bytes(raw)
        assert read_bin(tmp_path / "lfw.bin") == ([image, image], [True])

    @pytest.mark.parametrize("protocol", [0, 2, 4])
    @pytest.mark.parametrize("name", ["posix.system", "builtins.eval", "builtins.getattr", "builtins.bytes",
                                      "_codecs.decode", "_codecs.encode.__call__", "codecs.encode", "numpy.ndarray",
                                      "_codecs.lookup"])  # fmt: skip
    def test_refuses_every_name(self, tmp_path, protocol, name):
        module, _, attribute = name.partition(".") if name.count(".") == 1 else ("_codecs", "", "encode.__call__")
        if protocol < 4:
            call = f"c{module}\n{attribute}\n".encode()
        else:
            call = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(x)]) + x.encode() for x in (module, attribute)) + b"\x93"
        marker = tmp_path / "ran"
        argument = f"touch {marker}".encode()
        (tmp_path / "a.bin").write_bytes(call + b"(X" + len(argument).to_bytes(4, "little") + argument + b"tR.")
        with pytest.raises(ValueError, match=re.escape(f"refused, it asks for {module}.{attribute}. ")):
            FaceBin(str(tmp_path / "a.bin"))
        assert not marker.exists()

    def test_refuses_code(self, tmp_path):
        class Malicious:
            def __reduce__(self):
                return os.system, (f"touch {tmp_path / 'ran'}",)

        for content in (Malicious(), ([encoded(1), Malicious()], [True]), ([encoded(1)] * 2, [Malicious()])):
            raw = pickle.dumps(content)
            (tmp_path / "a.bin").write_bytes(raw)
            with pytest.raises(ValueError, match=f"a.bin: refused, it asks for {os.name}.system. .* might run code"):
                FaceBin(str(tmp_path / "a.bin"))
            assert not (tmp_path / "ran").exists()
            pickle.loads(raw)  # it would have run
            assert (tmp_path / "ran").exists()
            (tmp_path / "ran").unlink()

    @pytest.mark.parametrize(
        "arguments, message",
        [
            ((b"abc", "zip"), "it encodes a bytes as 'zip'"),
            (("abc", "rot13"), "it encodes a str as 'rot13'"),
            ((["a"], "latin1"), "it encodes a list as 'latin1'"),
            (("abc",), "missing 1 required positional argument"),
            (("abc", "latin1", "strict", 1), "takes 3 positional arguments"),
        ],
    )
    def test_encode_encodes_nothing_else(self, tmp_path, arguments, message):
        class Trick:
            def __reduce__(self):
                return codecs.encode, arguments

        (tmp_path / "a.bin").write_bytes(pickle.dumps(Trick()))
        with pytest.raises(ValueError, match=message):
            read_bin(tmp_path / "a.bin")

    @pytest.mark.parametrize("state", [b"}X\x08\x00\x00\x00__call__K\x01s", b"N}X\x08\x00\x00\x00__call__K\x01s\x86"])
    def test_what_stands_for_encode_can_not_be_changed(self, tmp_path, state):
        """BUILD sets attributes of an object; a second file must find what the first found."""
        (tmp_path / "a.bin").write_bytes(b"\x80\x02c_codecs\nencode\n" + state + b"b.")
        with pytest.raises(ValueError, match="a.bin: refused"):
            read_bin(tmp_path / "a.bin")
        (tmp_path / "b.bin").write_bytes(pickle.dumps(([b"\xff", b"b"], [True]), protocol=2))
        assert read_bin(tmp_path / "b.bin")[0] == [b"\xff", b"b"]

    @pytest.mark.parametrize("raw", [b"", b"no pickle", b"\x80\x04]q", b"P1\n.", b"\x80\x02\x82\x01.",
                                     b"\x80\x02X\xff\xff\xff\xffa."])  # fmt: skip
    def test_damaged_files_are_refused(self, tmp_path, raw):
        (tmp_path / "a.bin").write_bytes(raw)
        with pytest.raises(ValueError, match="a.bin: refused, .*get it again"):
            read_bin(tmp_path / "a.bin")

    @pytest.mark.parametrize(
        "content, message",
        [
            ([b"a", b"b"], "found a list"),
            (([b"a", "b"], [True]), "found a str among the images"),
            (([b"a", b"b"], [2]), "found 2 among the bools"),
            (([b"a", b"b"], [b"a"]), "found b'a' among the bools"),
            (([b"a", b"b", b"c"], [True]), "found 3 images and 1 bools"),
            (([], []), "found 0 images and 0 bools"),
            ({"a": 1}, "found a dict"),
        ],
    )
    def test_other_content_is_refused(self, tmp_path, content, message):
        (tmp_path / "a.bin").write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=f"is no verification set: expected .*, {re.escape(message)}"):
            read_bin(tmp_path / "a.bin")

    def test_other_containers_are_refused(self, tmp_path):
        (tmp_path / "a.bin").write_bytes(pickle.dumps(OrderedDict()))
        with pytest.raises(ValueError, match=r"refused, it asks for collections.OrderedDict"):
            read_bin(tmp_path / "a.bin")
        with pytest.raises(FileNotFoundError, match="b.bin is no file"):
            read_bin(tmp_path / "b.bin")

    def test_an_image_that_can_not_be_decoded_is_named(self, tmp_path):
        (tmp_path / "a.bin").write_bytes(pickle.dumps(([encoded(1), b"no image"], [True])))
        data = FaceBin("a.bin", str(tmp_path), PIPELINE)
        with pytest.raises(ValueError, match="a.bin: image 1 of 2 can't be decoded: 8 bytes"):
            data[1]


class TestPairs:
    NAMES = ("A/A_0001.jpg", "A/A_0002.jpg", "B/B_0001.jpg", "B/B_0012.png", "C D/C D_0001.jpg")

    def make(self, root, text, **arguments):
        write_images(root / "images", self.NAMES)
        (root / "pairs.txt").write_text(text)
        return FacePairs(str(root), data_prefix="images", pipeline=PIPELINE, **arguments)

    def test_lines_of_two_paths(self, tmp_path):
        data = self.make(tmp_path, "A/A_0001.jpg B/B_0001.jpg 0\n\nB/B_0012.png\tB/B_0001.jpg\t1\n")
        assert brightness(data) == ([0, 2, 3], [0, 1, 2])
        pairs = data.metainfo["pairs"]
        assert pairs["first"].tolist() == [0, 2] and pairs["second"].tolist() == [1, 1]
        assert pairs["same"].tolist() == [False, True] and pairs["folds"] is None
        with pytest.raises(ValueError, match="read-only"):
            pairs["first"][0] = 1

    def test_official_form(self, tmp_path):
        text = "2\t1\nA\t1\t2\nA\t1\tB\t12\nB\t1\t12\nC D\t1\tA\t2\n"
        data = self.make(tmp_path, text)
        assert brightness(data)[0] == [0, 1, 3, 2, 4]  # in the order of the list
        pairs = data.metainfo["pairs"]
        assert pairs["first"].tolist() == [0, 0, 3, 4] and pairs["second"].tolist() == [1, 2, 2, 1]
        assert pairs["same"].tolist() == [True, False, True, False]
        assert pairs["folds"].tolist() == [0, 0, 1, 1]
        data = self.make(tmp_path, "2\nA 1 2\nB 1 12\nA 1 B 1\nB 12 A 2\n")
        assert data.metainfo["pairs"]["same"].tolist() == [True, True, False, False]
        assert data.metainfo["pairs"]["folds"] is None

    @pytest.mark.parametrize(
        "text, message",
        [
            ("", "pairs.txt has no pairs; expected LFW's form"),
            ("A/A_0001.jpg B/B_0001.jpg 0\nA/A_0001.jpg B/B_0001.jpg\n", "line 2: expected LFW's form"),
            ("A/A_0001.jpg B/B_0001.jpg 2\n", "or lines 'a b same', same 0 or 1, got 'A/A_0001.jpg B/B_0001.jpg 2'"),
            ("1 1\nA 1 2\n", "its first line announces 2 pairs, half of them of one person; it has 1"),
            ("0\n", "announces 0 pairs"),
            ("1 1\nA 1 2\nA 1 2\n", "line 3: expected 'name1 i name2 j', got 'A 1 2'"),
            (
                "A/Anna Smith/1.jpg B/2.jpg 0\n",
                "got 'A/Anna Smith/1.jpg B/2.jpg 0'; part the fields by tabs where names",
            ),
            ("1 1\nC D 1 2\nA 1 B 2\n", "got 'C D 1 2'; part the fields by tabs where names have blanks"),
            ("1 1\nA one 2\nA 1 B 2\n", "line 2: expected 'name i j', got 'A one 2'"),
        ],
    )
    def test_other_lines_are_refused(self, tmp_path, text, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            self.make(tmp_path, text)

    def test_missing_images_are_one_error(self, tmp_path):
        lines = [f"A/A_0001.jpg X/{i}.jpg 0" for i in range(8)]
        with pytest.raises(
            FileNotFoundError, match=r"pairs.txt names 8 of 9 images .*: \S+/X/0.jpg, .*X/4.jpg \.\.\.$"
        ):
            self.make(tmp_path, "\n".join(lines))
        with pytest.raises(FileNotFoundError, match=r"names 1 of 2 images that are not there: \S+/B/B_0009.jpg$"):
            self.make(tmp_path, "1\nA 1 1\nA 1 B 9\n")
        with pytest.raises(
            FileNotFoundError, match=r"pairs '\S+none.txt' is no file; found in \S+: images/, pairs.txt"
        ):
            FacePairs(str(tmp_path), pairs="none.txt")

    def test_is_lazy_if_asked_and_picklable(self, tmp_path):
        data = self.make(tmp_path, "A/A_0001.jpg B/B_0001.jpg 0\n", lazy_init=True)
        assert not data._fully_initialized and len(data) == 2
        assert torch.equal(pickle.loads(pickle.dumps(data))[1]["inputs"], data[1]["inputs"])
        assert data[-1]["index"] == 1

    def test_real_faces(self, shared_data):
        data = FacePairs(str(shared_data / "lfw_mini"), data_prefix="verify", pipeline=PIPELINE)
        assert len(data) == 400 and data[399]["inputs"].shape == (3, 112, 112)
        pairs = data.metainfo["pairs"]
        assert len(pairs["same"]) == 1600 and pairs["same"].sum() == 800 and pairs["folds"] is None
        for row, line in enumerate((shared_data / "lfw_mini" / "pairs.txt").read_text().splitlines()):
            names = [data.get_data_info(int(pairs[side][row]))["img_path"] for side in ("first", "second")]
            a, b, same = line.split()
            assert names[0].endswith(a) and names[1].endswith(b) and pairs["same"][row] == (same == "1")


class TestTemplates:
    def make(self, root, images="a.jpg 7 1\nb.jpg 7 1\nc.jpg 3 2 x\n", pairs="7 3 0\n3 3 1\n"):
        write_images(root / "crops", ["a.jpg", "b.jpg", "c.jpg"])
        (root / "images.txt").write_text(images)
        (root / "pairs.txt").write_text(pairs)
        return FaceTemplates(str(root), data_prefix="crops", pipeline=PIPELINE)

    def test_lists(self, tmp_path):
        data = self.make(tmp_path)
        assert brightness(data) == ([0, 1, 2], [0, 1, 2])
        assert data.metainfo["templates"].tolist() == [7, 7, 3] and data.metainfo["media"].tolist() == [1, 1, 2]
        pairs = data.metainfo["pairs"]
        assert pairs["first"].tolist() == [7, 3] and pairs["second"].tolist() == [3, 3]
        assert pairs["same"].tolist() == [False, True] and pairs["same"].dtype == bool
        assert data.metainfo["templates"].dtype == pairs["first"].dtype == np.int64

    @pytest.mark.parametrize(
        "arguments, message",
        [
            (dict(images=""), "images.txt has no images"),
            (dict(images="a.jpg 7 1\nb.jpg 7\n"), "images.txt, line 2: expected 'name template media'"),
            (dict(images="a.jpg x 1\n"), "the last two whole numbers, got 'a.jpg x 1'"),
            (dict(pairs="7 3\n"), "pairs.txt: expected lines 'template1 template2 same'"),
            (dict(pairs="7 3 0\n7 3 yes\n"), "same 0 or 1; could not convert string 'yes' to int64 at row 1"),
            (dict(pairs="7 3 2\n"), "whole numbers, same 0 or 1"),
            (dict(pairs="7 9 0\n8 3 0\n"), "pairs.txt names 2 templates of which"),
        ],
    )
    def test_other_lines_are_refused(self, tmp_path, arguments, message):
        with pytest.raises(ValueError, match=message):
            self.make(tmp_path, **arguments)

    def test_missing_files_are_errors(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"images.txt names 1 of 2 images that are not there: \S+/z.jpg"):
            self.make(tmp_path, images="a.jpg 7 1\nz.jpg 7 1\n")
        with pytest.raises(FileNotFoundError, match=r"images '\S+none.txt' is no file"):
            FaceTemplates(str(tmp_path), images="none.txt")
        self.make(tmp_path)
        with pytest.raises(FileNotFoundError, match=r"pairs '\S+none.txt' is no file"):
            FaceTemplates(str(tmp_path), pairs="none.txt", data_prefix="crops")


class TestIdentities:
    def make(self, root, **arguments):
        names = ["gallery/B/0.jpg", "gallery/D/0.jpg", "probe/B/1.jpg", "probe/B/2.jpg", "probe/C/0.jpg"]
        write_images(root, [*names, "distractor/x/y.jpg", "distractor/z.png"])
        return FaceIdentities(str(root), pipeline=PIPELINE, **arguments)

    def test_three_folders(self, tmp_path):
        data = self.make(tmp_path)
        assert brightness(data) == (list(range(7)), list(range(7)))
        meta = data.metainfo
        assert meta["roles"].tolist() == ["gallery"] * 2 + ["probe"] * 3 + ["distractor"] * 2
        assert meta["identities"].tolist() == [0, 2, 0, 0, 1, -1, -1] and meta["identities"].dtype == np.int64
        # No classes of a head, which CheckClassesHook would compare them with.
        assert meta["people"] == ("B", "C", "D") and "classes" not in meta
        assert len(self.make(tmp_path, distractor=None)) == 5

    def test_wrong_layouts_are_errors(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no folder .*people; found in .*: distractor/, gallery/"):
            self.make(tmp_path, gallery="people")
        with pytest.raises(FileNotFoundError, match="distractor: no image below .*noise, found in .*gallery/"):
            self.make(tmp_path, distractor="noise")
        (tmp_path / "empty").mkdir()
        with pytest.raises(FileNotFoundError, match="distractor: no image below .*empty, found in .*: nothing"):
            self.make(tmp_path, distractor="empty")
        (tmp_path / "gallery" / "B").rename(tmp_path / "gallery" / "E")
        with pytest.raises(ValueError, match="no person of 'probe' is in 'gallery'; .*found 'B' and 'D'"):
            FaceIdentities(str(tmp_path))
