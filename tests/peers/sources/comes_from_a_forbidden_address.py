"""A source that does everything right, from an address that the destination must not let in."""

from __future__ import annotations

from support.raw_nbd import ProtocolViolation, RawClient
from support.scripted_source import arguments

if __name__ == "__main__":
    options = arguments(__doc__, "bind")
    try:
        RawClient.to(options.address, options.port, bind=options.bind)
    except ProtocolViolation as error:
        print(error, flush=True)
