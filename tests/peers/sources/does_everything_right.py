"""A source without a fault: everything, a flush, DISC, and not a byte more."""

from __future__ import annotations

from support.scripted_source import arguments, connected, send_image

if __name__ == "__main__":
    options = arguments(__doc__)
    client = connected(options)
    send_image(client, options.image)
    client.say_goodbye()
    print("sent everything, and the destination ended the connection", flush=True)
