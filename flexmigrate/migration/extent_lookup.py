"""Looks up, for the passes of a migration, what is data in an image and what is a hole."""

from __future__ import annotations

from collections.abc import Iterator

from flexmigrate.image.extents import Extent
from flexmigrate.image.storage import FastPath

_NO_DATA = Extent(0, 0, data=True)


class ExtentLookup:
    """The extents of one image, looked up in ascending order, pass by pass.

    How far the data reaches is remembered. To find the next hole, a filesystem may look through all
    that lies before it: tmpfs does, so that asking anew for each request would take a time that
    grows with the square of the size. What has become a hole since then reads as zeroes, and is
    marked for the next pass. A hole isn't remembered: what was written into it has to be seen.
    """

    def __init__(self, fast: FastPath) -> None:
        self._fast = fast
        self._data = _NO_DATA

    def forget(self) -> None:
        """Begin a pass: look everything up anew."""
        self._data = _NO_DATA

    def at(self, position: int) -> Extent:
        """Return an extent that *position* lies in.

        :raises OSError: it can't be looked up.
        """
        if not self._data.offset <= position < self._data.end:
            extent = self._fast.extent_at(position)
            if not extent.data:
                return extent
            self._data = extent
        return self._data

    def within(self, position: int, end: int) -> Iterator[Extent]:
        """Tell data from holes from *position* to *end*, each extent clipped. Raises as ``at``."""
        while position < end:
            extent = self.at(position)
            stop = min(end, extent.end)
            yield Extent(position, stop - position, extent.data)
            position = stop
