"""What stops a suite."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class SuiteError(Exception):
    """A reason to stop that a user can mend: the message says what is wrong and what to do."""


class DiskFullError(SuiteError):
    """Nothing more can be written."""

    def __init__(self, place: object):
        super().__init__(f"the disk is full ({place}); finished runs are kept. Free some space and go on with --resume")


def nearest(name: str, known: Iterable[str]) -> str:
    """``'; did you mean ...?'`` for a name that is not known, or nothing."""
    near = difflib.get_close_matches(name, dict.fromkeys(known), 3, 0.5)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
