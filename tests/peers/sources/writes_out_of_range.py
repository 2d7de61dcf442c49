"""A source that thinks the image is larger, is told so, and says DISC as if all were well.

All that the destination has was sent, and answered; but what the source had for the place beyond
its end is nowhere. Whoever gets an error must not be believed to have migrated.
"""

from __future__ import annotations

from support.raw_nbd import EINVAL, ENOSPC
from support.scripted_source import arguments, connected, send_image

if __name__ == "__main__":
    options = arguments(__doc__, "offset")
    client = connected(options)
    error = client.write(int(options.offset, 0), bytes(4096))
    if error not in (EINVAL, ENOSPC):
        raise SystemExit(f"a write out of range was answered with {error}")
    print("was told that it is out of range, and the connection lives", flush=True)
    send_image(client, options.image)
    client.say_goodbye()
    print("sent everything, and the destination ended the connection", flush=True)
