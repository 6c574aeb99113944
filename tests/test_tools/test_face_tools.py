from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from drconv_mm.datasets.face.alignment import reference_points
from drconv_mm.datasets.face.bin import FaceBin
from drconv_mm.datasets.face.pairs import FacePairs
from drconv_mm.datasets.face.records import FaceRecords

TOOLS = Path(__file__).parents[2] / "tools" / "face"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a tool; returns what it prints, having seen that it fails with the message or not at all."""

    def run(tool, *arguments, error=None, told=""):
        spec = importlib.util.spec_from_file_location(tool, TOOLS / f"{tool}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [f"{tool}.py", *map(str, arguments)])
        message = ""
        try:
            module.main()
        except SystemExit as end:
            message = end.code if isinstance(end.code, str) else "failed" * bool(end.code)
        printed = capsys.readouterr()
        assert bool(message) == (error is not None), message + printed.err
        assert re.search(error or "", message + printed.err), message + printed.err
        assert re.search(told, printed.err), printed.err
        return printed.out

    return run


@pytest.fixture
def people(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("A/A_0001.jpg", "A/A_0002.jpg", "B/B_0001.png"):
        path = tmp_path / "people" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 256, (16, 12, 3), dtype=np.uint8))
    return tmp_path / "people"


def files(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_records(run, people, tmp_path):
    out = tmp_path / "new" / "train.rec"
    assert run("make_records", people, out) == f"{out}: 3 images of 2 people\n"
    assert files(out.parent) == ["train.idx", "train.json", "train.lst", "train.rec"]
    lines = ["1\t0\tA/A_0001.jpg", "2\t0\tA/A_0002.jpg", "3\t1\tB/B_0001.png"]
    assert out.with_suffix(".lst").read_text().splitlines() == lines
    assert json.loads(out.with_suffix(".json").read_text()) == {"classes": ["A", "B"]}
    before = out.read_bytes()
    run(
        "make_records",
        people,
        out,
        error=r"error: \S+train.rec, .*train.json exists; name another file, or give --force",
    )
    run("make_records", people, out, "--size", 8, 6, "--quality", 80, "--force")
    data = FaceRecords(str(out.parent))
    images = [cv2.imdecode(np.frombuffer(data[i]["img_bytes"], np.uint8), 1) for i in range(3)]
    assert out.read_bytes() != before and [image.shape for image in images] == [(8, 6, 3)] * 3
    assert data[2]["img_bytes"][:2] == b"\xff\xd8"

    index = out.with_suffix(".idx")
    before = index.read_text()
    index.unlink()
    assert run("make_records", "--index", out) == f"{index}: 6 records\n"
    assert index.read_text() == before


def test_a_corrupt_image_ends_it_or_is_left_out(run, people, tmp_path):
    (people / "A" / "A_0001.jpg").write_bytes(b"no image")
    out = tmp_path / "new" / "train.rec"
    run("make_records", people, out, error="error: .*A_0001.jpg can't be decoded: 8 bytes")
    assert files(out.parent) == []
    assert run("make_records", people, out, "--corrupt", "skip").endswith("2 images of 2 people, 1 left out\n")
    data = FaceRecords(str(out.parent))
    assert [data[i]["label"] for i in range(len(data))] == [0, 1]


def test_bin(run, people, tmp_path):
    (people / "pairs.txt").write_text("1 1\nA 1 2\nA 2 B 1\n")
    out = tmp_path / "new" / "lfw.bin"
    assert run("make_records", people, out, "--pairs", "pairs.txt") == f"{out}: 2 pairs of 3 images\n"
    assert files(out.parent) == ["lfw.bin"]
    ours, theirs = FacePairs(str(people)), FaceBin(str(out))
    for name in ("first", "second", "same"):
        assert np.array_equal(ours.metainfo["pairs"][name], theirs.metainfo["pairs"][name])
    for i in range(3):
        assert Path(ours[i]["img_path"]).read_bytes() == theirs[i]["img_bytes"]
    run("make_records", people, out, "--pairs", people / "pairs.txt", error="lfw.bin exists")
    (people / "pairs.txt").write_text("A/A_0001.jpg A/none.jpg 1")
    other = tmp_path / "other.bin"
    run("make_records", people, other, "--pairs", "pairs.txt", error="error: .*names 1 of 2 images that are not there")
    assert not other.exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "expected IMAGES and OUT, or --index FILE.rec"),
        (["people", "a.tar"], "OUT must end in .rec or .bin, got 'a.tar'"),
        (["people", "a.bin"], "a .bin needs --pairs"),
        (["people", "a.rec", "--quality", "0"], "--quality must be between 1 and 100, got 0"),
        (["--index", "a.idx"], "expected a .rec, got 'a.idx'"),
        (["nobody", "a.rec"], "there is no folder nobody"),
        (["people/A", "a.rec"], "has no class folders"),
    ],
)
def test_wrong_arguments_of_make_records(run, people, monkeypatch, arguments, message):
    monkeypatch.chdir(people.parent)
    run("make_records", *arguments, error=re.escape(message))
    assert files(people.parent) == ["people"]


COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255))


def draw_face(landmarks, shape):
    """Five dots of different colours on gray."""
    picture = np.full((*shape, 3), 128, dtype=np.uint8)
    for (x, y), color in zip(landmarks, COLORS, strict=True):
        cv2.circle(picture, (round(x), round(y)), 9, color, -1)
    return picture


@pytest.mark.parametrize("form", ["txt", "csv", "json"])
def test_align(run, tmp_path, form):
    landmarks = (reference_points() @ [[0, 2], [-2, 0]] + [300, 20]).round(2)  # a quarter turn, twice as large
    (tmp_path / "photos" / "x").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "photos" / "x" / "a 1.png"), draw_face(landmarks, (300, 320)))
    (tmp_path / "photos" / "b.jpg").write_bytes(b"no image")
    on_a_line = [[i, 2 * i] for i in range(5)]
    faces = {"x/a 1.png": landmarks.tolist(), "b.jpg": landmarks.tolist(), "c.png": landmarks.tolist(),
             "x/../x/a 1.png": on_a_line, "../out.png": landmarks.tolist()}  # fmt: skip
    path = tmp_path / f"landmarks.{form}"
    if form == "json":
        path.write_text(json.dumps(faces))
    else:
        separator = "," if form == "csv" else " "
        lines = [separator.join(map(str, [name, *np.ravel(points).tolist()])) for name, points in faces.items()]
        path.write_text("\n".join(["path,x1,y1,x2,y2,x3,y3,x4,y4,x5,y5"] * (form == "csv") + lines) + "\n")
    out = tmp_path / "faces"
    printed = run("align", path, "--root", tmp_path / "photos", "--out", out, "--size", 112, 96, error=(
        r"(?s)b.jpg: \S+b.jpg can't be decoded.*c.png: .*No such file.*a 1.png: .*"
        r"\.\./out.png: the path leaves --out"))  # fmt: skip
    assert printed == f"{out}: 1 faces of 112x96, 4 not aligned\n"
    assert files(tmp_path) == ["faces", path.name, "photos"] and files(out) == ["x"] and files(out / "x") == ["a 1.png"]
    face = cv2.imread(str(out / "x" / "a 1.png"))
    assert face.shape == (112, 96, 3)
    for (x, y), color in zip(reference_points((112, 96)), COLORS, strict=True):
        assert face[round(y), round(x)].tolist() == list(color)
    run(
        "align", path, "--root", tmp_path / "photos", "--out", out, error="a 1.png exists; name another folder, or give"
    )


def test_a_second_face_of_a_picture(run, tmp_path):
    """Of the first that can be aligned there is one file, whatever comes after it."""
    cv2.imwrite(str(tmp_path / "a.png"), draw_face(reference_points(), (112, 112)))
    points = reference_points(), reference_points() + 3, [[i, i] for i in range(5)]
    good, other, bad = (" ".join(map(str, np.ravel(found))) for found in points)
    (tmp_path / "landmarks.txt").write_text(f"a.png {bad}\na.png {good}\na.png {other}\n")
    arguments = ("align", tmp_path / "landmarks.txt", "--root", tmp_path, "--out", tmp_path / "out", "--force")
    faces = []
    for _ in range(2):  # again, over the first
        run(*arguments, error=r"(?s)line 1: .*on a line.*line 3: .*a second face of this picture")
        faces.append((tmp_path / "out/a.png").read_bytes())
    (tmp_path / "landmarks.txt").write_text(f"a.png {good}\n")
    run(*arguments)
    assert faces == [(tmp_path / "out/a.png").read_bytes()] * 2


def test_quality_and_mirrored_landmarks_of_aligned_faces(run, tmp_path):
    rng = np.random.default_rng(0)
    cv2.imwrite(str(tmp_path / "a.jpg"), rng.integers(0, 256, (112, 112, 3), dtype=np.uint8))
    for name, points in (("right", reference_points()), ("mirrored", reference_points()[[1, 0, 2, 4, 3]])):
        (tmp_path / f"{name}.txt").write_text(f"a.jpg {' '.join(map(str, np.ravel(points)))}\n")
    arguments = ("--root", tmp_path, "--out", tmp_path / "out", "--force")
    sizes = []
    for quality in (20, 90):
        run("align", tmp_path / "right.txt", *arguments, "--quality", quality, told=r"\A(?!.*mirrored)")
        sizes.append((tmp_path / "out/a.jpg").stat().st_size)
    assert sizes[0] < sizes[1] / 2
    run("align", tmp_path / "mirrored.txt", *arguments, told="most landmarks are mirrored")


def test_size_and_quality_of_records_and_bin(run, people, tmp_path):
    (people / "pairs.txt").write_text("1 1\nA 1 2\nA 2 B 1\n")
    for kind, more in (("rec", ()), ("bin", ("--pairs", "pairs.txt"))):
        for quality in (20, 90):
            out = tmp_path / str(quality) / f"train.{kind}"
            run("make_records", people, out, *more, "--size", 8, 6, "--quality", quality)
        sets = [
            FaceBin(str(tmp_path / str(quality) / "train.bin")) if more else FaceRecords(str(tmp_path / str(quality)))
            for quality in (20, 90)
        ]
        low, high = (data[0]["img_bytes"] for data in sets)
        assert cv2.imdecode(np.frombuffer(low, np.uint8), 1).shape == (8, 6, 3) and len(low) < len(high)


def test_landmarks_that_are_none(run, tmp_path):
    (tmp_path / "a.txt").write_text("")
    run("align", tmp_path / "a.txt", "--out", tmp_path / "out", error="a.txt has no landmarks; expected lines")
    (tmp_path / "a.json").write_text("[")
    run("align", tmp_path / "a.json", "--out", tmp_path / "out", error="a.json is no JSON")
    run("align", tmp_path / "b.txt", "--out", tmp_path / "out", error="b.txt")
    lines = ["a.jpg 1 2 3", "b.jpg " + "1 " * 9 + "x", "c.jpg " + "1 2 " * 5]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    run(
        "align",
        tmp_path / "a.txt",
        "--out",
        tmp_path / "out",
        error="line 1: .*got 'a.jpg 1 2 3'\n.*line 2: .*\n.*line 3",
    )
    assert not (tmp_path / "out").exists()


def test_help(run):
    for tool in ("make_records", "align"):
        assert "--force" in run(tool, "--help")


def test_a_log_has_no_progress_bars(people, tmp_path):
    """In a process of its own, whose error stream is no terminal."""
    command = [sys.executable, str(TOOLS / "make_records.py"), str(people), str(tmp_path / "a.rec")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
