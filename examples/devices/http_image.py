"""A disk image on a web server, read-only: each read is a request for a range (RFC 9110, 14.2)."""

import errno
from collections.abc import Iterable
from typing import Any

import treq
from zope.interface import implementer

from flexmigrate import Extent, IBlockDevice

PARTIAL_CONTENT = 206


async def open_http_image(url: str, client: Any = treq) -> "HTTPImage":
    """Ask how large the image is, and whether parts of it can be had.

    :param client: treq, or a treq client with a pool of connections, a proxy, credentials …
    :raises OSError: the server doesn't give parts, or doesn't say how large the whole is.
    """
    response = await client.get(url, headers={"Range": "bytes=0-0"})
    await response.content()
    ranges = response.headers.getRawHeaders("Content-Range") or [""]
    size = ranges[0].rpartition("/")[2]
    if response.code != PARTIAL_CONTENT or not size.isdigit():
        raise OSError(errno.ENOTSUP, f"{url} can't be read in parts (status {response.code})")
    return HTTPImage(url, int(size), client)


@implementer(IBlockDevice)
class HTTPImage:
    """An image of *size* bytes at *url*, which must not change; see `open_http_image`."""

    read_only = True

    def __init__(self, url: str, size: int, client: Any = treq) -> None:
        self.size = size
        self._url = url
        self._client = client

    async def read(self, offset: int, length: int) -> bytes:
        header = f"bytes={offset}-{offset + length - 1}"
        response = await self._client.get(self._url, headers={"Range": header}, timeout=30)
        if response.code != PARTIAL_CONTENT:
            raise OSError(errno.EIO, f"{self._url} answered with status {response.code}")
        content: bytes = await response.content()
        return content

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        raise OSError(errno.EROFS, "the image is read-only")

    def zero(self, offset: int, length: int, *, may_punch: bool, fast_only: bool = False) -> None:
        raise OSError(errno.EROFS, "the image is read-only")

    def trim(self, offset: int, length: int) -> None:
        raise OSError(errno.EROFS, "the image is read-only")

    def flush(self) -> None:
        """Nothing was written."""

    def extents(self, offset: int, length: int) -> Iterable[Extent]:
        return [Extent(offset, length, True)]

    def close(self) -> None:
        """Treq's connections close by themselves."""
