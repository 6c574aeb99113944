"""Folders of generated data: whole or not there, and made once."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SPLITS = ("train", "val")


def check_at_least(**limits: tuple[int, int]) -> None:
    """Checks arguments, each given as (value, least).

    Raises:
        ValueError: One of them is smaller.
    """
    for name, (value, least) in limits.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


@contextmanager
def new_data_set(root: str | Path, meta: dict) -> Iterator[Path | None]:
    """A folder to write a data set into, which becomes ``root`` at the end; None where it is there already.

    Args:
        root: Where the data set shall be.
        meta: What made it, as JSON takes it; kept in ``meta.json``.

    Raises:
        FileExistsError: ``root`` holds something else.
    """
    root = Path(root)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        found = root / "meta.json"
        if found.is_file() and json.loads(found.read_text()) == meta:
            yield None
            return
        raise FileExistsError(f"{root} holds something else than this data set; remove it or name another folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its place and renamed: a run that is killed leaves nothing that looks whole.
    draft = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        draft.chmod(0o755)
        yield draft
        (draft / "meta.json").write_text(json.dumps(meta))
        if root.exists():
            root.rmdir()
        draft.rename(root)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
