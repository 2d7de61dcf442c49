"""Ports of this machine that nobody else is given while a test needs them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_port(host: str = "127.0.0.1") -> Iterator[int]:
    """Hold a port of *host* on which nobody listens: who connects to it is refused.

    Whoever is told of it may listen there meanwhile, with ``SO_REUSEADDR``, which servers set. The
    kernel gives it to nobody who asks for any port; those that tests find, and let go of until
    somebody uses them, it does (ip(7), ``ip_local_port_range``).
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as holding:
        holding.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holding.bind((host, 0))
        yield int(holding.getsockname()[1])
