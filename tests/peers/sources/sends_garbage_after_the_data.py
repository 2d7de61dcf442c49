"""A source that sends everything, and then garbage where DISC is due."""

from __future__ import annotations

import random

from support.scripted_source import arguments, connected, send_image

if __name__ == "__main__":
    options = arguments(__doc__)
    client = connected(options)
    send_image(client, options.image)
    client.sock.sendall(random.Random(1).randbytes(28))
    client.end_of_the_conversation()
    print("the destination ended the connection", flush=True)
