"""A source that connects a second time in the middle of sending, and goes on with the first."""

from __future__ import annotations

from support.raw_nbd import WRITE, RawClient, connect, expect_end
from support.scripted_source import arguments, connected, pieces, send_image


def must_be_refused(address: str, port: int) -> None:
    """Connect, and have the connection ended without a word; not to be let in is as good."""
    try:
        second = connect(address, port)
    except ConnectionError:
        return
    expect_end(second)
    second.close()


def begin(client: RawClient, offset: int, data: bytes) -> None:
    """Write the first piece, so that the destination knows its sender."""
    if client.call(WRITE, offset, len(data), data):
        raise SystemExit("the first write failed")


if __name__ == "__main__":
    options = arguments(__doc__)
    first = connected(options)
    begin(first, *next(pieces(options.image)))
    must_be_refused(options.address, options.port)
    print("the second connection was ended without a word", flush=True)
    send_image(first, options.image)
    first.say_goodbye()
    print("sent everything, and the destination ended the connection", flush=True)
