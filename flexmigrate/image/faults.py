"""Errors of an image that say where they were: which file, what was done, and with which bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def located(error: OSError, doing: str, length: int, offset: int, path: str) -> OSError:
    """Return *error* as that of *doing* something with *length* bytes at *offset* of *path*."""
    where = f"{doing} {length} bytes at {offset} of {path} failed"
    return OSError(error.errno, f"{where}: {error.strerror or error}")


@contextmanager
def locating(doing: str, length: int, offset: int, path: str) -> Iterator[None]:
    """Have an OSError of the body say so."""
    try:
        yield
    except OSError as error:
        raise located(error, doing, length, offset, path) from error
