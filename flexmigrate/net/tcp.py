"""What every TCP connection of ours has: no delay for small packets, and a probe for peers that
vanished.
"""

from __future__ import annotations

import socket
from typing import Any

# tcp(7). A peer that vanished without a word is noticed after 30 + 3 * 10 = 60 seconds.
KEEPALIVE_IDLE_SECONDS = 30
KEEPALIVE_INTERVAL_SECONDS = 10
KEEPALIVE_PROBES = 3


def keep_alive(transport: Any) -> None:
    """Set TCP_NODELAY and keepalive, where there is a TCP socket; else do nothing."""
    handle = getattr(transport, "getHandle", lambda: None)()
    if isinstance(handle, socket.socket) and handle.family in (socket.AF_INET, socket.AF_INET6):
        transport.setTcpNoDelay(True)
        transport.setTcpKeepAlive(True)
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_SECONDS)
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_SECONDS)
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
