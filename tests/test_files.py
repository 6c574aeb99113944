from __future__ import annotations

import os
from pathlib import Path

import pytest

from drconv_mm.files import draft_of, write_whole


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_text_and_bytes_in_a_new_folder(tmp_path):
    write_whole(tmp_path / "new" / "a.txt", "gr\u00fcn\n")
    write_whole(tmp_path / "new" / "b.bin", b"\0")
    assert (tmp_path / "new" / "a.txt").read_bytes() == "gr\u00fcn\n".encode()
    assert names(tmp_path / "new") == ["a.txt", "b.bin"]


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "file.csv"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new \udcff")
    with pytest.raises(KeyboardInterrupt), draft_of(path) as draft:
        draft.write_text("half")
        assert draft.suffix == ".csv" and path.read_text() == "old"
        raise KeyboardInterrupt
    assert path.read_text() == "old" and names(tmp_path) == ["file.csv"]


def test_two_who_write_to_one_path_do_not_meet(tmp_path):
    path = tmp_path / "report.html"
    with draft_of(path) as first:
        first.write_text("first")
        with draft_of(path) as second:
            second.write_text("second")
            assert names(tmp_path) == sorted([first.name, second.name]) and second.name.startswith(".report.")
        assert path.read_text() == "second"
    assert path.read_text() == "first" and names(tmp_path) == ["report.html"]


def test_a_file_may_be_read_by_whom_a_plain_one_may(tmp_path):
    (tmp_path / "plain").write_text("")
    write_whole(tmp_path / "whole", "")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="needs /dev/full, a file on which every write finds no space"
)
def test_a_full_disk(tmp_path):
    path = tmp_path / "file"
    write_whole(path, b"old")
    with pytest.raises(OSError, match="No space left"), draft_of(path) as draft:
        draft.symlink_to("/dev/full")
        draft.write_bytes(bytes(1 << 20))
    assert path.read_bytes() == b"old" and names(tmp_path) == ["file"]


def test_a_full_disk_that_shows_when_the_data_leave_memory(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError("No space left")

    write_whole(tmp_path / "file", b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old" and names(tmp_path) == ["file"]
