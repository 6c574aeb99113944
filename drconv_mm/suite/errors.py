"""What stops a suite."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class SuiteError(Exception):
    """A reason to stop that a user can mend: the message says what is wrong and what to do."""


class DiskFullError(SuiteError):
    """Nothing more can be written."""

    def __init__(self, place: object):
        super().__init__(f"the disk is full ({place}); finished runs are kept. Free some space and go on with --resume")
        self.place = place

    def __reduce__(self) -> tuple:
        # A job hands it back pickled, which would give the message for the place.
        return type(self), (self.place,)


@contextmanager
def disk_full_is_told(place: object) -> Iterator[None]:
    """Says where: in the file that could not be written, where the system names it, else in ``place``.

    Raises:
        DiskFullError: In the place of the system's error.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(error.filename or place) from error
        raise


def nearest(name: str, known: Iterable[str]) -> str:
    """``'; did you mean ...?'`` for a name that is not known, or nothing."""
    by_case = {other.casefold(): other for other in known}
    near = [by_case[other] for other in difflib.get_close_matches(name.casefold(), by_case, 3, 0.5)]
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
