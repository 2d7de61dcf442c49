"""A web browser that has the wrong port."""

from __future__ import annotations

from support.raw_nbd import RawClient, connect
from support.scripted_source import arguments

if __name__ == "__main__":
    options = arguments(__doc__)
    client = RawClient(connect(options.address, options.port))
    client.sock.sendall(b"GET / HTTP/1.1\r\nHost: disk.example\r\nAccept: */*\r\n\r\n")
    client.end_of_the_conversation()
    print("the destination ended the connection", flush=True)
