"""The parts of a range that is read: a bounded number of extents, or its bytes.

Functions of an image alone. ``pieces`` may be asked on the reactor's thread where the range is
resident; the other two wait for the disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flexmigrate.image.extents import Extent

if TYPE_CHECKING:
    from flexmigrate.image.file import Image

# A structured read tells at most so many extents as such and the rest as data, so that a reply's
# head room is bounded however the file is fragmented.
MAX_READ_EXTENTS = 64


def pieces(image: Image, offset: int, length: int, whole: bool) -> list[Extent]:
    """Return the data and the holes of a range; all of it as data if it must stay *whole*.

    :raises OSError: where the extents can't be read.
    """
    if whole or not image.may_have_holes:
        return [Extent(offset, length, True)]
    found: list[Extent] = []
    for extent in image.extents(offset, length):
        if len(found) == MAX_READ_EXTENTS:
            at = found[-1].end
            found.append(Extent(at, offset + length - at, True))
            break
        found.append(extent)
    return found


def bring_in(image: Image, offset: int, length: int, whole: bool) -> list[Extent]:
    """Have a range in the page cache, then return its ``pieces``."""
    image.make_resident(offset, length)
    return pieces(image, offset, length, whole)


def several(
    image: Image, ranges: Sequence[tuple[int, int]], whole: bool
) -> list[bytes | OSError | None]:
    """Return for each short range its bytes, None for a hole that may be told as one, or why it
    can't be read.
    """
    outcomes: list[bytes | OSError | None] = []
    for offset, length in ranges:
        try:
            data = image.read(offset, length)
        except OSError as error:
            outcomes.append(error)
        else:
            outcomes.append(None if not whole and image.is_hole(data, offset) else data)
    return outcomes
