"""A source that connects, and waits for the destination to lose patience."""

from __future__ import annotations

import time

from support.raw_nbd import RawClient, connect
from support.scripted_source import arguments

if __name__ == "__main__":
    options = arguments(__doc__)
    client = RawClient(connect(options.address, options.port))
    print("connected", flush=True)
    since = time.monotonic()
    client.end_of_the_conversation()
    print(f"the destination waited {time.monotonic() - since:.1f} s", flush=True)
