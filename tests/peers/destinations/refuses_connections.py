"""A destination that isn't there: its port is taken, and nobody listens on it."""

from __future__ import annotations

import signal
import socket

from support.scripted_destination import arguments

if __name__ == "__main__":
    options = arguments(__doc__)
    with socket.socket() as port:
        port.bind((options.address, options.port))
        print(f"not listening on {options.address}:{port.getsockname()[1]}", flush=True)
        signal.pause()
