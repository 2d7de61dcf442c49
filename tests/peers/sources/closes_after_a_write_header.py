"""A source that announces a write, and goes away before its first byte."""

from __future__ import annotations

from support.scripted_source import arguments, connected, head_of_a_write

if __name__ == "__main__":
    client = connected(arguments(__doc__))
    client.sock.sendall(head_of_a_write())
    client.close()
    print("closed after a write header", flush=True)
