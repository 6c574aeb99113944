from __future__ import annotations

import pickle
import re
import struct

import numpy as np
import pytest

from drconv_mm.datasets.face.recordio import (
    MAGIC,
    RecordError,
    RecordReader,
    RecordWriter,
    build_index,
    pack,
    peek,
    read_index,
    unpack,
)

WORD = struct.pack("<I", MAGIC)
PAYLOADS = [b"", b"a", b"abcd", WORD, WORD * 3, b"abcd" + WORD, b"a" + WORD, b"abcd" + WORD + b"xy" + WORD + b"z",
            b"abcd" + WORD + WORD + b"e", WORD + b"abc", bytes(range(256)) * 9]  # fmt: skip


def encode_slowly(payload: bytes) -> bytes:
    """RecordIO word by word, as its specification says."""
    parts, part = [], b""
    for i in range(0, len(payload), 4):
        if payload[i : i + 4] == WORD:
            parts.append(part)
            part = b""
        else:
            part += payload[i : i + 4]
    parts.append(part)
    out = b""
    for i, part in enumerate(parts):
        flag = 0 if len(parts) == 1 else 1 if i == 0 else 3 if i == len(parts) - 1 else 2
        out += WORD + struct.pack("<I", (flag << 29) | len(part)) + part
        while len(out) % 4:
            out += b"\0"
    return out


def write(path, payloads):
    with RecordWriter(path) as writer:
        for key, payload in enumerate(payloads):
            writer.write(key, payload)
    return path


def test_writes_the_format_and_reads_it_back(tmp_path):
    path = write(tmp_path / "a.rec", PAYLOADS)
    encoded = [encode_slowly(payload) for payload in PAYLOADS]
    assert path.read_bytes() == b"".join(encoded)
    keys, offsets = read_index(tmp_path / "a.idx")
    assert keys.tolist() == list(range(len(PAYLOADS)))
    assert offsets.tolist() == np.cumsum([0] + [len(e) for e in encoded[:-1]]).tolist()
    reader = RecordReader(path)
    for payload, offset in zip(PAYLOADS, offsets.tolist(), strict=True):
        assert reader.read(offset) == payload
        assert reader.read(offset, limit=6)[:6] == payload[:6]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.idx", "a.rec"]


def test_random_payloads_full_of_the_magic_number(tmp_path):
    rng = np.random.default_rng(0)
    payloads = [b"".join(rng.choice([WORD, b"abcd", b"x"], rng.integers(0, 12))) for _ in range(200)]
    path = write(tmp_path / "a.rec", payloads)
    assert path.read_bytes() == b"".join(map(encode_slowly, payloads))
    reader = RecordReader(path)
    assert [reader.read(offset) for offset in read_index(tmp_path / "a.idx")[1].tolist()] == payloads


@pytest.mark.parametrize("labels", [3.0, [3.0], [7.0, 0.5]])
def test_image_records(labels):
    record = pack(labels, 12, b"image")
    assert unpack(record) == (tuple(labels) if isinstance(labels, list) else (labels,), 12, b"image")
    assert peek(record) == (labels[0] if isinstance(labels, list) else labels, 12)


def test_records_too_short_for_their_header():
    record = pack([7.0, 0.5], 12, b"")
    for size in (0, 23):
        with pytest.raises(RecordError, match=f"has {size} bytes, fewer than"):
            unpack(record[:size])
    with pytest.raises(RecordError, match="has 28 bytes, but a header that announces 2 labels"):
        unpack(record[:28])
    for size in (23, 27):
        with pytest.raises(RecordError, match=f"has {size} bytes, fewer than"):
            peek(record[:size])


def test_a_reader_is_pickled_without_its_file(tmp_path):
    reader = RecordReader(write(tmp_path / "a.rec", [b"abc", b"de"]))
    assert pickle.loads(pickle.dumps(reader)).read(12) == b"de" == reader.read(12)


def test_damage_is_named(tmp_path):
    path = write(tmp_path / "a.rec", [b"abcdefgh", b"ij", b"k" + WORD + b"abc" + WORD, b"last"])
    whole = path.read_bytes()
    reader = RecordReader(path)
    with pytest.raises(RecordError, match="at 4, where no record or part of one can begin"):
        reader.read(4)
    with pytest.raises(RecordError, match=f"begins at byte {len(whole)}, but the file ends at {len(whole)}"):
        reader.read(len(whole))
    path.write_bytes(whole[:-2])
    with pytest.raises(RecordError, match=f"but the file ends at {len(whole) - 2}"):
        RecordReader(path).read(len(whole) - 12)


def test_a_part_that_is_no_continuation_is_damage(tmp_path):
    begin = WORD + struct.pack("<I", (1 << 29) | 4) + b"abcd"
    (tmp_path / "a.rec").write_bytes(begin + encode_slowly(b"next"))
    with pytest.raises(RecordError, match="at 12, where no record or part"):
        RecordReader(tmp_path / "a.rec").read(0)
    (tmp_path / "b.rec").write_bytes(begin[:7] + b"\x60" + begin[8:])  # the last part of a record, and no first
    with pytest.raises(RecordError, match="at 0, where no record or part"):
        RecordReader(tmp_path / "b.rec").read(0)


@pytest.mark.parametrize("content, begins", [(b"\x0a\x23\xd7\xcf rest", "0a23d7cf"), (b"", "(none)")])
def test_other_files_are_refused(tmp_path, content, begins):
    (tmp_path / "a.rec").write_bytes(content)
    message = f"a.rec is no RecordIO file: it begins with the bytes {begins}, expected the magic number 0a23d7ce"
    with pytest.raises(ValueError, match=re.escape(message)):
        RecordReader(tmp_path / "a.rec")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="b.rec is no file; expected a RecordIO .rec"):
        RecordReader(tmp_path / "b.rec")


@pytest.mark.parametrize("text", ["", "1 two\n", "1\t2\n3\n", "-1\t0\n", "1\t2\t3\n"])
def test_an_index_of_another_form_is_refused(tmp_path, text):
    (tmp_path / "a.idx").write_text(text)
    with pytest.raises(ValueError, match="expected lines 'key<tab>offset'"):
        read_index(tmp_path / "a.idx")


def test_an_exception_while_writing_leaves_nothing(tmp_path):
    write(tmp_path / "a.rec", [b"old"])
    before = (tmp_path / "a.rec").read_bytes()
    with pytest.raises(OSError, match="disk full"), RecordWriter(tmp_path / "a.rec") as writer:
        writer.write(0, b"new")
        raise OSError("disk full")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.idx", "a.rec"]
    assert (tmp_path / "a.rec").read_bytes() == before


def test_an_index_is_built_from_ids_or_positions(tmp_path):
    records = [pack(0.0, 3, b"abc" + WORD), pack([4.0, 6.0], 0, b""), pack(1.0, 1, b"")]
    path = write(tmp_path / "a.rec", records)
    keys, offsets, rest = build_index(path)
    assert keys.tolist() == [3, 0, 1] and rest == 0
    assert offsets.tolist() == read_index(tmp_path / "a.idx")[1].tolist()
    path.write_bytes(path.read_bytes() + encode_slowly(records[0]) + WORD)
    keys, _, rest = build_index(path)
    assert keys.tolist() == [0, 1, 2, 3] and rest == 4
    (tmp_path / "b.rec").write_bytes(WORD + b"\xff\xff")
    with pytest.raises(ValueError, match="its first record is damaged"):
        build_index(tmp_path / "b.rec")
