"""A source that connects and goes away before it has said or heard a word."""

from __future__ import annotations

from support.raw_nbd import connect
from support.scripted_source import arguments

if __name__ == "__main__":
    options = arguments(__doc__)
    connect(options.address, options.port).close()
    print("closed after connecting", flush=True)
