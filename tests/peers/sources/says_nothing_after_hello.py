"""A source that comes to an agreement, and then waits for the destination to lose patience."""

from __future__ import annotations

import time

from support.scripted_source import arguments, connected

if __name__ == "__main__":
    client = connected(arguments(__doc__))
    since = time.monotonic()
    client.expect_end()
    print(f"the destination waited {time.monotonic() - since:.1f} s", flush=True)
