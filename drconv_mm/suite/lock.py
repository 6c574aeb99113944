"""One suite in a work dir, one process on a run."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import SuiteError


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Holds a lock file while entered; the system frees it when its processes end, however they end.

    Processes started meanwhile with ``close_fds=False`` hold it too: a training that outlives a killed suite keeps
    another suite out until it has ended.

    Raises:
        SuiteError: Another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 100).decode(errors="replace").strip() or "unknown"
            raise SuiteError(
                f"{what} is in use by another process (started as {holder}; a training may have outlived it): wait "
                "until it has ended, end it, or choose another --work-dir"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"pid {os.getpid()} on {os.uname().nodename}\n".encode())
        os.set_inheritable(descriptor, True)
        yield
    finally:
        os.close(descriptor)
