"""A source that says DISC when all but the last 512 bytes of the image are sent."""

from __future__ import annotations

from support.scripted_source import arguments, connected, pieces

if __name__ == "__main__":
    options = arguments(__doc__)
    client = connected(options)
    *whole, (offset, data) = pieces(options.image)
    for at, piece in (*whole, (offset, data[:-512])):
        client.write(at, piece)
    client.say_goodbye()
    print("the destination ended the connection", flush=True)
