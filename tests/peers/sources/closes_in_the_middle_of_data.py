"""A source that goes away when half of a write's data is sent."""

from __future__ import annotations

from support.scripted_source import PIECE, arguments, connected, head_of_a_write

if __name__ == "__main__":
    options = arguments(__doc__)
    client = connected(options)
    data = options.image.read_bytes()[: PIECE // 2]
    client.sock.sendall(head_of_a_write() + data)
    client.close()
    print("closed in the middle of data", flush=True)
