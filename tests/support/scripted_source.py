"""The common parts of tests/peers/sources: their command line, and sending an image.

A source says `connected` once the destination's hello has come, and at its end, in a line of its
own, what it did or what became of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from support.raw_nbd import WRITE, ProtocolViolation, RawClient, request

PIECE = 256 * 1024  # bytes in a write


def arguments(description: str | None, *more: str) -> argparse.Namespace:
    """Read a source's command line: ADDRESS PORT IMAGE, and what else it needs."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("image", type=Path, help="what is to be sent")
    for name in more:
        parser.add_argument(name)
    return parser.parse_args()


def connected(options: argparse.Namespace) -> RawClient:
    """Connect, hear the hello, and say so."""
    client = RawClient.to(options.address, options.port)
    if client.size != options.image.stat().st_size:
        raise ProtocolViolation(f"the destination has {client.size} bytes")
    print("connected", flush=True)
    return client


def pieces(image: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the image, piece by piece, each with its offset."""
    with image.open("rb") as file:
        offset = 0
        while data := file.read(PIECE):
            yield offset, data
            offset += len(data)


def send_image(client: RawClient, image: Path) -> None:
    """Write all of the image, and flush it."""
    for offset, data in pieces(image):
        if error := client.write(offset, data):
            raise ProtocolViolation(f"a write at {offset} was answered with error {error}")
    if error := client.flush():
        raise ProtocolViolation(f"the flush was answered with error {error}")


def head_of_a_write() -> bytes:
    """Return a request to write one piece at the beginning, without its data."""
    return request(WRITE, cookie=1, offset=0, length=PIECE)
