"""A source that does everything right, from an address that the destination must not let in."""

from __future__ import annotations

from support.raw_nbd import connect, expect_end
from support.scripted_source import arguments

if __name__ == "__main__":
    options = arguments(__doc__, "bind")
    expect_end(connect(options.address, options.port, bind=options.bind))
    print("closed without a word", flush=True)
