"""Errors of an image with their location: the file, the operation, and the range of bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def located(error: OSError, doing: str, length: int, offset: int, path: str) -> OSError:
    """Return *error* with its location: *doing* something with *length* bytes at *offset* of
    *path*.
    """
    where = f"{doing} {length} bytes at {offset} of {path} failed"
    return OSError(error.errno, f"{where}: {error.strerror or error}")


@contextmanager
def locating(doing: str, length: int, offset: int, path: str) -> Iterator[None]:
    """Add the location to an OSError of the body."""
    try:
        yield
    except OSError as error:
        raise located(error, doing, length, offset, path) from error
