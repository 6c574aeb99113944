"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """Gives a path beside ``path`` to write to; it takes ``path``'s place once the block is done, and goes if it fails.

    The folder is made where it is missing. The draft is hidden, has ``path``'s ending and a name of its own, so that
    two who write to one path don't meet: the last one's file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name alone: a file of tempfile's would be readable by its owner only.
    draft = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
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
