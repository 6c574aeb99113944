"""The RecordIO container (``.rec`` with its ``.idx``) as MXNet writes it, read and written without MXNet.

A record is the magic number, a length word (3 bits of flag, 29 bits of length), the bytes, and zeros up to a multiple
of 4. Where the bytes hold the magic number themselves, at a multiple of 4, the record is cut there into parts (flags
1, 2 ... 2, 3) and the number left out. An ``.idx`` has a line ``key<tab>offset`` a record. In face sets a record is an
image with a header: ``uint32 flag, float32 label, uint64 id, uint64 id2``, and, where flag > 0, that many float32
labels instead of the one.
"""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

MAGIC = 0xCED7230A
_MAGIC_BYTES = struct.pack("<I", MAGIC)
_WORDS = struct.Struct("<II")
_HEADER = struct.Struct("<IfQQ")
PEEK = _HEADER.size + 4
_MAX_LENGTH = (1 << 29) - 1
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)


class RecordError(ValueError):
    """A record that is damaged or cut off."""


class RecordCutOff(RecordError):
    """A record that the file ends in or before."""


class ImageRecord(NamedTuple):
    """What a record of an image set says."""

    labels: tuple[float, ...]
    key: int
    image: bytes  # encoded; empty in the records that describe others


def pack(labels: float | Sequence[float], key: int, image: bytes) -> bytes:
    """A record's bytes.

    Args:
        labels: A number, or several; stored as float32.
        key: Number of the record, as in the ``.idx``.
        image: The encoded image.
    """
    if isinstance(labels, Sequence):
        return _HEADER.pack(len(labels), 0, key, 0) + struct.pack(f"<{len(labels)}f", *labels) + image
    return _HEADER.pack(0, labels, key, 0) + image


def unpack(record: bytes) -> ImageRecord:
    """The reverse of `pack`.

    Raises:
        RecordError: The bytes are too few for the header.
    """
    if len(record) < _HEADER.size:
        raise RecordError(f"has {len(record)} bytes, fewer than an image record's header of {_HEADER.size}")
    flag, label, key, _ = _HEADER.unpack_from(record)
    end = _HEADER.size + 4 * flag
    if len(record) < end:
        raise RecordError(f"has {len(record)} bytes, but a header that announces {flag} labels")
    labels = struct.unpack_from(f"<{flag}f", record, _HEADER.size) if flag else (label,)
    return ImageRecord(labels, key, record[end:])


def peek(record: bytes) -> tuple[float, int]:
    """The first label and the key, from a record's first `PEEK` bytes.

    Raises:
        RecordError: The bytes are too few.
    """
    if len(record) >= _HEADER.size:
        flag, label, key, _ = _HEADER.unpack_from(record)
        if flag == 0:
            return label, key
        if len(record) >= PEEK:
            return struct.unpack_from("<f", record, _HEADER.size)[0], key
    raise RecordError(f"has {len(record)} bytes, fewer than an image record's header")


class RecordReader:
    """Records of a ``.rec`` by their offset.

    Opens the file at the first read and reads by position, so that the workers of a DataLoader may share one reader,
    forked or pickled.

    Args:
        path: The ``.rec``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is another format.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._descriptor: int | None = None
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} is no file; expected a RecordIO .rec")
        begin = self._pread(4, 0)
        if begin != _MAGIC_BYTES:
            raise ValueError(
                f"{self.path} is no RecordIO file: it begins with the bytes {begin.hex() or '(none)'}, expected the "
                f"magic number {_MAGIC_BYTES.hex()}; is it the .rec, and whole?"
            )

    @property
    def size(self) -> int:
        """Length of the file, bytes."""
        return self.path.stat().st_size

    def read(self, offset: int, limit: int | None = None) -> bytes:
        """The record that begins at ``offset``, or its first ``limit`` bytes (at least; for a look at a header).

        Raises:
            RecordError: There is no whole record.
        """
        pieces, length = [], 0
        for flag, begin, size in self._parts(offset):
            if flag in (_MIDDLE, _LAST):
                pieces.append(_MAGIC_BYTES)
            wanted = size if limit is None else min(size, limit - length)
            pieces.append(self._pread(wanted, begin))
            if len(pieces[-1]) < wanted:
                raise RecordCutOff(f"needs bytes {begin} to {begin + size}, but the file ends at {self.size}")
            length += wanted
            if limit is not None and length >= limit:
                break
        return b"".join(pieces)

    def end(self, offset: int) -> int:
        """Where the record that begins at ``offset`` ends, and the next begins.

        Raises:
            RecordError: There is no whole record.
        """
        *_, (_, begin, size) = self._parts(offset)
        end = begin + size + -size % 4
        if end > self.size:
            raise RecordCutOff(f"needs bytes {begin} to {end}, but the file ends at {self.size}")
        return end

    def _parts(self, offset: int) -> Iterator[tuple[int, int, int]]:
        """Flag, begin and length of each part."""
        allowed = (_WHOLE, _FIRST)
        while True:
            words = self._pread(_WORDS.size, offset)
            if len(words) < _WORDS.size:
                raise RecordCutOff(f"begins at byte {offset}, but the file ends at {self.size}")
            magic, word = _WORDS.unpack(words)
            flag, size = word >> 29, word & _MAX_LENGTH
            if magic != MAGIC or flag not in allowed:
                raise RecordError(f"has the bytes {words.hex()} at {offset}, where no record or part of one can begin")
            offset += _WORDS.size
            yield flag, offset, size
            if flag in (_WHOLE, _LAST):
                return
            offset += size + -size % 4
            allowed = (_MIDDLE, _LAST)

    def _pread(self, size: int, offset: int) -> bytes:
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(self._descriptor, size, offset)

    def close(self) -> None:
        """Closes the file; the next read opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            self.close()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_descriptor": None}


class RecordWriter:
    """Writes a ``.rec`` and its ``.idx``; a context manager, whose end puts both in place.

    Until then they lie in a hidden folder beside it, which an exception removes: what has its name is whole.

    Args:
        path: The ``.rec``; the ``.idx`` lies beside it.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def __enter__(self) -> RecordWriter:
        self._draft = Path(tempfile.mkdtemp(prefix=f".{self.path.stem}-", dir=self.path.parent))
        self._record = (self._draft / "rec").open("wb")
        self._index = (self._draft / "idx").open("w")
        return self

    def write(self, key: int, record: bytes) -> None:
        """Appends a record.

        Raises:
            ValueError: It is longer than the format holds.
        """
        if len(record) > _MAX_LENGTH:
            raise ValueError(f"record {key} has {len(record)} bytes, RecordIO holds at most {_MAX_LENGTH}")
        self._index.write(f"{key}\t{self._record.tell()}\n")
        begin, cut = 0, record.find(_MAGIC_BYTES)
        while cut >= 0:
            if cut % 4 == 0:
                self._part(_FIRST if begin == 0 else _MIDDLE, record[begin:cut])
                begin = cut + 4
            cut = record.find(_MAGIC_BYTES, cut + 1 if cut % 4 else begin)
        self._part(_LAST if begin else _WHOLE, record[begin:])

    def _part(self, flag: int, content: bytes) -> None:
        self._record.write(_WORDS.pack(MAGIC, flag << 29 | len(content)) + content + bytes(-len(content) % 4))

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._record.close()
            self._index.close()
            if kind is None:
                index = self.path.with_suffix(".idx")
                index.unlink(missing_ok=True)  # never an old index beside a new .rec
                (self._draft / "rec").replace(self.path)
                (self._draft / "idx").replace(index)
        finally:
            shutil.rmtree(self._draft, ignore_errors=True)


def read_index(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Keys and offsets of an ``.idx``, in its order.

    Returns:
        Two int64 arrays [n].

    Raises:
        ValueError: It has other lines than ``key<tab>offset``.
    """
    expected = f"{path}: expected lines 'key<tab>offset' of whole numbers, as MXNet writes an .idx"
    if Path(path).stat().st_size == 0:
        raise ValueError(f"{expected}; it is empty")
    try:
        keys, offsets = np.loadtxt(path, dtype=np.int64, ndmin=2, comments=None).T.copy()
    except ValueError as problem:  # numpy's message has the line
        raise ValueError(f"{expected}; {problem}") from problem
    if min(keys.min(), offsets.min()) < 0:
        raise ValueError(f"{expected}; it has negative ones")
    return keys, offsets


def build_index(path: str | Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Keys and offsets of a ``.rec``'s records, found by reading it through.

    The keys are the records' ids where those differ, as in insightface's sets, else 0, 1, 2 ...

    Returns:
        Two int64 arrays [n], and how many bytes at the end are no whole record.

    Raises:
        ValueError: The file is another format, or its first record is damaged.
    """
    reader = RecordReader(path)
    keys, offsets, offset, size = [], [], 0, reader.size
    while offset < size:
        try:
            end = reader.end(offset)
            key = peek(reader.read(offset, PEEK))[1]
        except RecordError:
            break
        keys.append(key)
        offsets.append(offset)
        offset = end
    if not keys:
        raise ValueError(f"{path}: its first record is damaged or cut off; there is nothing to index")
    if len(set(keys)) < len(keys) or min(keys) < 0 or max(keys) >= 1 << 63:
        keys = range(len(offsets))
    return np.array(keys, dtype=np.int64), np.array(offsets, dtype=np.int64), size - offset
