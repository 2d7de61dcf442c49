"""What lies between source and destination: nothing, or a gigabit link that is long.

The long link is made of two network namespaces and netem where the kernel has it; otherwise of a
relay (`bench.long_link`), in which each TCP connection ends, so that what is measured is whether
enough requests are under way, and not how TCP fills a long link.
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
def long_link(delay: float, note: Callable[[str], None]) -> Iterator[Link]:
    """Make a link of a gigabit a second.

    :param delay: seconds, each way.
    :param note: is told if it is not made of netem.
    """
    with contextlib.ExitStack() as ends:
        try:
            link = ends.enter_context(_namespaces(delay))
        except Unmeasured as error:
            note(f"The long links are relays, not namespaces with netem: {error}")
            link = ends.enter_context(relayed(delay))
        yield link


@contextlib.contextmanager
def _namespaces(delay: float) -> Iterator[Link]:
    """Join two network namespaces of our own by a pair of virtual devices."""
    near, far = (f"bench-{end}-{os.getpid()}" for end in ("near", "far"))
    with contextlib.ExitStack() as ends:
        for name in (near, far):
            _ip("netns", "add", name)
            ends.callback(_ip, "netns", "delete", name)
        _ip(
            *("link", "add", "end", "netns", near, "type", "veth"),
            *("peer", "name", "end", "netns", far),
        )
        for name, address in ((near, _NEAR), (far, _FAR)):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "end")
            for device in ("end", "lo"):
                _ip("-n", name, "link", "set", device, "up")
            inside = ("ip", "netns", "exec", name)
            for direction in ("rmem", "wmem"):
                path = f"/proc/sys/net/ipv4/tcp_{direction}"
                _run(*inside, "sh", "-c", f"echo {_BUFFERS} > {path}")
            _run(
                *("tc", "-n", name, "qdisc", "add", "dev", "end", "root", "netem"),
                *("delay", f"{delay * 1000:g}ms", "rate", f"{GIGABIT * 8}bit"),
                # Packets: no loss, even where both directions are full.
                *("limit", "100000"),
            )
        yield Link(
            ("ip", "netns", "exec", near),
            ("ip", "netns", "exec", far),
            _FAR,
            lambda port: (_FAR, port),
        )


@contextlib.contextmanager
def relayed(delay: float) -> Iterator[Link]:
    """Put a relay between the two, on this host."""
    with crew() as children:

        def through(port: int) -> tuple[str, int]:
            relay = start_module(
                *(children, "bench.long_link"), *(HOST, str(port), str(delay), str(GIGABIT))
            )
            return HOST, int(relay.wait_for(r"^port (\d+)$")[1])

        yield Link((), (), HOST, through)


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*argv: str) -> None:
    try:
        ran = subprocess.run(argv, check=False, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise Unmeasured(f"{argv[0]} is not installed") from error
    if ran.returncode:
        raise Unmeasured(f"{argv[0]} says {ran.stderr.strip()!r}")
