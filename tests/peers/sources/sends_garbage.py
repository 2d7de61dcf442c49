"""A source that talks of other things where requests are due."""

from __future__ import annotations

import random

from support.scripted_source import arguments, connected

if __name__ == "__main__":
    client = connected(arguments(__doc__))
    client.sock.sendall(random.Random(1).randbytes(28))
    client.end_of_the_conversation()
    print("the destination ended the connection", flush=True)
