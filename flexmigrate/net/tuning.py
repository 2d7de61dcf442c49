"""Socket options for all connections of ours, beyond those that Twisted sets.

TCP: no delay for small packets, and probes for peers that vanished; within one host also no pacing,
and no more data in the kernel than it can send at once. UNIX sockets: room for a whole long reply.
The measurements are in docs/performance.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

# tcp(7). A peer that vanished is noticed after 30 + 3 * 10 = 60 seconds.
KEEPALIVE_IDLE_SECONDS = 30
KEEPALIVE_INTERVAL_SECONDS = 10
KEEPALIVE_PROBES = 3

PROBE_SECONDS = 6
"""Seconds that a peer has to show that it is alive, once somebody else wants its place."""

# Within one host no network can be congested, but BBR, the default in many places, paces what is
# sent all the same: long replies take three times as long as with this algorithm, which every
# kernel has and every user may choose (tcp(7), TCP_CONGESTION).
LOCAL_CONGESTION_CONTROL = b"reno"

# Bytes that a socket accepts beyond what it may send at once (tcp(7), TCP_NOTSENT_LOWAT). Within
# one host, data that waits there is sent by the client's processor, when it handles an
# acknowledgement, and overtakes data that ours is sending at the moment. TCP takes that for a loss:
# it sends again and shrinks its window, so that more data waits. This limit is as large as one
# packet. The data in its own buffer keeps a client busy until we are called again.
LOCAL_UNSENT = 64 * 1024

LOCAL_OPTIONS: tuple[tuple[int, Any], ...] = (
    (socket.TCP_CONGESTION, LOCAL_CONGESTION_CONTROL),
    (socket.TCP_NOTSENT_LOWAT, LOCAL_UNSENT),
)

# Bytes that a UNIX socket accepts before it is full (socket(7), SO_SNDBUF). With the kernel's 208
# KiB each long reply is sent in many small portions, with a sleep between them.
UNIX_SEND_BUFFER = 1024 * 1024


def tune(transport: Any) -> None:
    """Set the options for the kind of socket below *transport*; without a socket, do nothing."""
    handle = getattr(transport, "getHandle", lambda: None)()
    if not isinstance(handle, socket.socket):
        return
    if handle.family == socket.AF_UNIX:
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_SEND_BUFFER)
    elif handle.family in (socket.AF_INET, socket.AF_INET6):
        transport.setTcpNoDelay(True)
        transport.setTcpKeepAlive(True)
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_SECONDS)
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_SECONDS)
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
        if _is_within_host(handle):
            # These options only make it faster; if one is refused, everything still works.
            for option, value in LOCAL_OPTIONS:
                with contextlib.suppress(OSError):
                    handle.setsockopt(socket.IPPROTO_TCP, option, value)


def probe(transport: Any) -> None:
    """Make the kernel find out, within PROBE_SECONDS, whether the peer's host is still there.

    The host of a slow peer answers; the connection of a dead peer is lost. Without a TCP socket, do
    nothing.
    """
    handle = getattr(transport, "getHandle", lambda: None)()
    if not isinstance(handle, socket.socket) or handle.family == socket.AF_UNIX:
        return
    for option, value in (
        # The limit is a time rather than a number of probes: each call sends one, and there is none
        # while sent data isn't acknowledged (tcp(7)).
        (socket.TCP_USER_TIMEOUT, PROBE_SECONDS * 1000),
        (socket.TCP_KEEPIDLE, 1),
        (socket.TCP_KEEPINTVL, 1),
    ):
        with contextlib.suppress(OSError):  # the connection may have just been lost
            handle.setsockopt(socket.IPPROTO_TCP, option, value)


def _is_within_host(handle: socket.socket) -> bool:
    """Return whether both ends of a connection have the same address."""
    try:
        return bool(handle.getsockname()[0] == handle.getpeername()[0])
    except OSError:  # the peer is gone already
        return False
