"""Tests that need the machine to themselves, while other processes of the run have theirs to do.

pytest-xdist runs a suite in several processes, which know nothing of each other. Here two locks of
files (flock(2)) make them take turns: any number of tests beside each other, or one alone.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def turn(folder: Path, *, alone: bool) -> Iterator[None]:
    """Wait until the body may run, and hold the turn while it does.

    :param folder: is the same for all who take turns; the locks' files are made there.
    :param alone: nobody else has a turn meanwhile. Whoever comes after one that waits to be alone
        waits behind it, so that it isn't overtaken for ever.
    """
    with (folder / "queue").open("w") as queue, (folder / "floor").open("w") as floor:
        fcntl.flock(queue, fcntl.LOCK_EX)
        fcntl.flock(floor, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(queue, fcntl.LOCK_UN)
        yield
