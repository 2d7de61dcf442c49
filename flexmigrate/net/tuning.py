"""What every connection of ours asks of its socket, beyond what Twisted does.

Over TCP: no delay for small packets, a probe for peers that vanished, and within one host no pacing
and no more in the kernel than it can send at once. Over a UNIX socket: room for a whole long reply.
The figures are in docs/performance.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

# tcp(7). A peer that vanished without a word is noticed after 30 + 3 * 10 = 60 seconds.
KEEPALIVE_IDLE_SECONDS = 30
KEEPALIVE_INTERVAL_SECONDS = 10
KEEPALIVE_PROBES = 3

PROBE_SECONDS = 6
"""For a peer to show that it is there, once somebody else wants its place."""

# Within one host there is no network that could be congested, but BBR, the default in many places,
# measures it all the same and spreads out what is sent: long replies take three times as long as
# with this one, which every kernel has and every user may choose (tcp(7), TCP_CONGESTION).
LOCAL_CONGESTION_CONTROL = b"reno"

# Bytes that a socket takes beyond what it may send at once (tcp(7), TCP_NOTSENT_LOWAT). Within one
# host, what waits there is sent by the processor that deals with a client's acknowledgement, which
# is the client's own, and overtakes what ours is just sending. TCP takes that for a loss: it sends
# again, and makes its window small, so that still more waits. One packet is as much as this; what a
# client has before it, in its own buffer, keeps it busy until we are called.
LOCAL_UNSENT = 64 * 1024

LOCAL_OPTIONS: tuple[tuple[int, Any], ...] = (
    (socket.TCP_CONGESTION, LOCAL_CONGESTION_CONTROL),
    (socket.TCP_NOTSENT_LOWAT, LOCAL_UNSENT),
)

# Bytes that a UNIX socket takes before it's full (socket(7), SO_SNDBUF). With the kernel's 208 KiB
# each long reply is sent in many small portions, with a sleep between each two.
UNIX_SEND_BUFFER = 1024 * 1024


def tune(transport: Any) -> None:
    """Set what belongs to the kind of socket below *transport*; without a socket, do nothing."""
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
            # A speed, and nothing else: where one is refused, things work as well.
            for option, value in LOCAL_OPTIONS:
                with contextlib.suppress(OSError):
                    handle.setsockopt(socket.IPPROTO_TCP, option, value)


def probe(transport: Any) -> None:
    """Have the kernel find out, within PROBE_SECONDS, whether the peer's host is there still.

    A slow peer's host answers; the connection of a dead one is lost. Without a TCP socket, do
    nothing.
    """
    handle = getattr(transport, "getHandle", lambda: None)()
    if not isinstance(handle, socket.socket) or handle.family == socket.AF_UNIX:
        return
    for option, value in (
        # The limit is a time, not a number of probes: there is one each time that this is called,
        # and none of what was sent and isn't acknowledged (tcp(7)).
        (socket.TCP_USER_TIMEOUT, PROBE_SECONDS * 1000),
        (socket.TCP_KEEPIDLE, 1),
        (socket.TCP_KEEPINTVL, 1),
    ):
        with contextlib.suppress(OSError):  # the connection may be gone just now
            handle.setsockopt(socket.IPPROTO_TCP, option, value)


def _is_within_host(handle: socket.socket) -> bool:
    """Whether both ends of a connection have the same address."""
    try:
        return bool(handle.getsockname()[0] == handle.getpeername()[0])
    except OSError:  # the peer is gone already
        return False
