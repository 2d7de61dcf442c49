"""A source that has the destination terminated when all but the last piece is sent."""

from __future__ import annotations

import os
import signal

from support.scripted_source import arguments, connected, pieces

if __name__ == "__main__":
    options = arguments(__doc__, "pid")
    client = connected(options)
    for offset, data in list(pieces(options.image))[:-1]:
        client.write(offset, data)
    os.kill(int(options.pid), signal.SIGTERM)
    client.end_of_the_conversation()
    print("the destination ended the connection", flush=True)
