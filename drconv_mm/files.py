"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """Gives a path beside ``path`` to write to; it takes ``path``'s place once the block is done, and goes if it fails.

    The folder is made where it is missing. The draft has ``path``'s ending.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield draft
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file (text as UTF-8), whole or not at all.

    Raises:
        OSError: It can't be written; what was there is as before.
    """
    data = content.encode() if isinstance(content, str) else content
    with draft_of(path) as draft, draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # a full disk may show only here
