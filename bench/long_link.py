"""``python -m bench.long_link NEAR FAR DELAY RATE``: the wire between two TUN devices, a long one.

It makes the devices NEAR and FAR, says ``ready``, and goes on until it is killed; they may be moved
to other network namespaces meanwhile, and are gone with it. A packet that leaves by one comes in
by the other DELAY seconds later, at RATE bytes a second at most. As much as that link has under way
may wait before it, as in a good router; what comes on top of that is dropped. So TCP has all of its
work to do.

Needs CAP_NET_ADMIN. The kernel's netem could do the same, where a kernel has it.
"""

from __future__ import annotations

import collections
import fcntl
import os
import select
import struct
import sys
import time

# From linux/if_tun.h: packets as they are, with nothing before them.
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000

LARGEST = 65535
"""Bytes of a packet."""

# Packets that are read in a row, before it is looked which are due.
_BATCH = 64


class Line:
    """One direction of the link: when each packet arrives. Bytes and seconds.

    :ivar dropped: how many packets found no place.
    """

    def __init__(self, delay: float, rate: float) -> None:
        self._delay = delay
        self._rate = rate
        self._most = max(2 * delay * rate, LARGEST)  # there and back: what TCP has under way
        self._free = 0.0  # when all that came before has been sent
        self._under_way: collections.deque[tuple[float, bytes]] = collections.deque()
        self.dropped = 0

    def take(self, packet: bytes, now: float) -> None:
        """Take a packet that comes *now*, or drop it."""
        begin = max(self._free, now)
        if (begin - now) * self._rate > self._most:
            self.dropped += 1
            return
        self._free = begin + len(packet) / self._rate
        self._under_way.append((self._free + self._delay, packet))

    def arrived(self, now: float) -> bytes | None:
        """Return the next packet that has arrived by *now*, or None."""
        if self._under_way and self._under_way[0][0] <= now:
            return self._under_way.popleft()[1]
        return None

    @property
    def due(self) -> float:
        """When the next packet arrives; infinity if there is none."""
        return self._under_way[0][0] if self._under_way else float("inf")


def open_device(name: str) -> int:
    """Make a TUN device and return its descriptor, which doesn't block.

    :raises OSError: it can't be made.
    """
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return fd


def carry(near: int, far: int, delay: float, rate: float) -> None:
    """Carry packets between two descriptors for ever."""
    ways = {near: (far, Line(delay, rate)), far: (near, Line(delay, rate))}
    epoll = select.epoll()
    for fd in ways:
        epoll.register(fd, select.EPOLLIN)
    while True:
        now = time.monotonic()
        for out, line in ways.values():
            while (packet := line.arrived(now)) is not None:
                _write(out, packet)
        due = min(line.due for _, line in ways.values())
        for fd, _ in epoll.poll(-1 if due == float("inf") else max(0.0, due - time.monotonic())):
            _read(fd, ways[fd][1])


def _read(fd: int, line: Line) -> None:
    for _ in range(_BATCH):
        try:
            packet = os.read(fd, LARGEST)
        except OSError:  # there is no more, or the device is down
            return
        line.take(packet, time.monotonic())


def _write(fd: int, packet: bytes) -> None:
    try:
        os.write(fd, packet)
    except OSError as error:  # as a wire does, to which nothing is connected
        sys.stderr.write(f"a packet is lost: {error}\n")


def main(near: str, far: str, delay: float, rate: float) -> None:
    """Make the link, and be it."""
    ends = open_device(near), open_device(far)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    carry(*ends, delay, rate)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
