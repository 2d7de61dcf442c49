"""A source that sends everything, and goes away instead of saying DISC."""

from __future__ import annotations

from support.scripted_source import arguments, connected, send_image

if __name__ == "__main__":
    options = arguments(__doc__)
    client = connected(options)
    send_image(client, options.image)
    client.close()
    print("closed after the data", flush=True)
