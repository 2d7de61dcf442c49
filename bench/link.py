"""The network between source and destination: loopback, or a long gigabit link.

The long link joins two network namespaces: by netem where the kernel has it, else by a wire of our
own between two TUN devices (`bench.long_link`).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.servers import HOST, crew, start_module
from bench.stage import Unmeasured

GIGABIT = 125_000_000  # bytes a second

# What Linux allows by default, 4 and 6 MiB, doesn't hold what is under way on a link of 100 ms.
_BUFFERS = "4096 131072 67108864"
_LARGE_PACKETS = 9000  # bytes
_DEVICE = "end"
_NEAR, _FAR = "192.0.2.1", "192.0.2.2"  # for documentation (RFC 5737), so nobody's


@dataclass(frozen=True)
class Link:
    """A link.

    :ivar near, far: what to put before a command to run it at that end.
    :ivar host: address at which the far end listens.
    :ivar through: tells address and port to connect to, for a port at the far end.
    """

    near: tuple[str, ...]
    far: tuple[str, ...]
    host: str
    through: Callable[[int], tuple[str, int]]


@contextlib.contextmanager
def loopback() -> Iterator[Link]:
    """Return what has no length."""
    yield Link((), (), HOST, lambda port: (HOST, port))


@contextlib.contextmanager
def long_link(delay: float) -> Iterator[Link]:
    """Make a link of a gigabit a second between two network namespaces of our own.

    :param delay: seconds, each way.
    :raises Unmeasured: if that may not be done here.
    """
    near, far = (f"bench-{end}-{os.getpid()}" for end in ("near", "far"))
    with contextlib.ExitStack() as ends:
        for name in (near, far):
            _ip("netns", "add", name)
            ends.callback(_ip, "netns", "delete", name)
        join = _by_netem if _knows_netem(near) else _by_wire
        ends.enter_context(join(near, far, delay))
        yield Link(
            ("ip", "netns", "exec", near),
            ("ip", "netns", "exec", far),
            _FAR,
            lambda port: (_FAR, port),
        )


def _knows_netem(namespace: str) -> bool:
    try:
        _run("tc", "-n", namespace, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms")
    except Unmeasured:
        return False
    _run("tc", "-n", namespace, "qdisc", "delete", "dev", "lo", "root")
    return True


@contextlib.contextmanager
def _by_netem(near: str, far: str, delay: float) -> Iterator[None]:
    """Join the namespaces by a pair of virtual devices, each of which delays what leaves by it."""
    _ip(
        *("link", "add", _DEVICE, "netns", near, "type", "veth"),
        *("peer", "name", _DEVICE, "netns", far),
    )
    for name, address in ((near, _NEAR), (far, _FAR)):
        _set_up(name, _DEVICE, address)
        _run(
            *("tc", "-n", name, "qdisc", "add", "dev", _DEVICE, "root", "netem"),
            *("delay", f"{delay * 1000:g}ms", "rate", f"{GIGABIT * 8}bit"),
            # Packets: no loss, even where both directions are full.
            *("limit", "100000"),
        )
    yield


@contextlib.contextmanager
def _by_wire(near: str, far: str, delay: float) -> Iterator[None]:
    """Join them by a process of ours, which has a device in each."""
    devices = [f"bench{os.getpid()}{end}" for end in "ab"]
    with crew() as children:
        wire = start_module(children, "bench.long_link", *devices, str(delay), str(GIGABIT))
        wire.wait_for("^ready$")
        for name, device, address in zip((near, far), devices, (_NEAR, _FAR), strict=True):
            _ip("link", "set", device, "netns", name)
            # Large packets, as within a data centre: each costs this wire some microseconds.
            _ip("-n", name, "link", "set", device, "mtu", str(_LARGE_PACKETS))
            _set_up(name, device, address)
        yield


def _set_up(namespace: str, device: str, address: str) -> None:
    _ip("-n", namespace, "address", "add", f"{address}/24", "dev", device)
    for each in (device, "lo"):
        _ip("-n", namespace, "link", "set", each, "up")
    for direction in ("rmem", "wmem"):
        path = f"/proc/sys/net/ipv4/tcp_{direction}"
        _run("ip", "netns", "exec", namespace, "sh", "-c", f"echo {_BUFFERS} > {path}")


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*argv: str) -> None:
    try:
        ran = subprocess.run(argv, check=False, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise Unmeasured(f"{argv[0]} is not installed") from error
    if ran.returncode:
        raise Unmeasured(f"{argv[0]} says {ran.stderr.strip()!r}")
