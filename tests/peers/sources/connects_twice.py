"""A source that connects a second time in the middle of sending, and goes on with the first."""

from __future__ import annotations

from support.raw_nbd import WRITE, Ended, ProtocolViolation, RawClient
from support.scripted_source import arguments, connected, pieces, send_image


def must_be_refused(address: str, port: int) -> None:
    """Connect, and be let nowhere: in oldstyle without a word, else with the reason."""
    try:
        RawClient.to(address, port)
    except (ConnectionError, Ended):
        return
    except ProtocolViolation as error:
        if "a sender is connected already" in str(error):
            return
        raise
    raise SystemExit("it was let in")


def begin(client: RawClient, offset: int, data: bytes) -> None:
    """Write the first piece, so that the destination knows its sender."""
    if client.call(WRITE, offset, len(data), data):
        raise SystemExit("the first write failed")


if __name__ == "__main__":
    options = arguments(__doc__)
    first = connected(options)
    begin(first, *next(pieces(options.image)))
    must_be_refused(options.address, options.port)
    print("the second connection was refused", flush=True)
    send_image(first, options.image)
    first.say_goodbye()
    print("sent everything, and the destination ended the connection", flush=True)
