"""Which pages of an image are in memory, asked without reading them.

The image is mapped, and the mapping is never touched: a page that is gone would be a SIGBUS, and
not an error that can be answered. Only mincore(2) is asked about it.
"""

from __future__ import annotations

from flexmigrate.image.kernel import calls as linux


class Residency:
    """A view of which pages of the first *size* bytes of the open file *fd* are in the page cache.

    Where it tells nothing (no address space for so large a mapping, say), no page counts as being
    in memory: a thread is then asked for what could have been had at once, and nothing worse.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._size = size
        self._address = 0
        try:
            self._address = linux.map_file(fd, size)
        except OSError:
            self._size = 0

    def covers(self, offset: int, length: int) -> bool:
        """Tell whether all pages of a range are in memory now; takes a byte of memory a page.

        They may be gone a moment later. A hole counts as absent until somebody has read it.
        """
        end = offset + length
        if end > self._size:
            return False
        first = offset & -linux.PAGE
        try:
            pages = linux.pages_in_core(self._address + first, end - first)
        except OSError:
            return False
        return pages == b"\1" * len(pages)

    def close(self) -> None:
        """Undo the mapping; nothing is resident from then on."""
        if self._size:
            size, self._size = self._size, 0
            linux.unmap(self._address, size)
