"""The migrations that are measured, and the same with nbdcopy if it can do it.

=====================  ============================================================
figure                 unit
=====================  ============================================================
``bandwidth``          bytes of data a second, until both ends are done and flushed
``allocated``          of the copy's disk space, of the image's
``median``, ``worst``  seconds that a client waited across a handover, of all
``parked``             likewise, of one handover
``longest``            seconds that it waited at most during a migration, the median of all
``share``              of a client's rate without a migration
``seconds``            to the end
``times``              as long as without verification
``first``              seconds until something was sent
``source``             bytes resident at most, likewise ``destination``
=====================  ============================================================
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from bench.clients import need, timed
from bench.link import Link, long_link, loopback
from bench.moving import GLANCE, PATIENCE, Migration, migration
from bench.processes import MIB
from bench.servers import NBDKIT, await_pid, crew
from bench.stage import Stage, Unmeasured, dense, extend, warm, warm_data
from support.images import allocated, blank_image, difference
from support.ports import held_port

Figures = dict[str, float]

# The sparse image is so many times as large as the dense one, and has half as much data.
SPARSE = 8
PIECES = 512
HUGE = 1024

# A limit that a writer on the same host easily outruns, bytes a second.
SLOW_LINK = 50 * MIB

# Seconds for which a client writes before a migration, so that there is something to compare with.
BEFORE = 1.0


@dataclass(frozen=True)
class Grounds:
    """The settings that the measurements share.

    :ivar handovers: how many are measured.
    """

    stage: Stage
    handovers: int

    @functools.cached_property
    def sparse(self) -> Path:
        """An image with data in many pieces."""
        size = self.stage.scale.size
        return scattered(self.stage.folder / "sparse", SPARSE * size, size // 2, PIECES)

    @functools.cached_property
    def huge(self) -> Path:
        """One that is as large as files may be on some filesystems, with little in it."""
        size = self.stage.scale.size
        return scattered(self.stage.folder / "huge", HUGE * size, size, 2 * PIECES)

    @functools.cached_property
    def small(self) -> Path:
        """One that is soon moved."""
        path = self.stage.folder / "small"
        dense(path, self.stage.scale.size // 16)
        return path


@dataclass(frozen=True)
class Migrating:
    """One thing to measure.

    :ivar ours: measures flexmigrate.
    :ivar theirs: the same with nbdcopy, if that can do it.
    :ivar once: in the first round only, since it has rounds of its own.
    """

    name: str
    ours: Callable[[Grounds], Figures]
    theirs: Callable[[Grounds], Figures] | None = None
    once: bool = False


Lay = Callable[[Grounds], AbstractContextManager[Link]]


def scattered(path: Path, size: int, data: int, pieces: int) -> Path:
    """Make an image of *size* bytes that has *data* bytes in so many pieces, evenly apart."""
    with path.open("wb") as file:
        file.truncate(size)
        for number in range(pieces):
            extend(file.fileno(), number * (size // pieces), data // pieces)
    return path


def _on_loopback(_: Grounds) -> AbstractContextManager[Link]:
    return loopback()


def _far(delay: float) -> Lay:
    return lambda grounds: long_link(delay)


def _move(
    image: Callable[[Grounds], Path],
    lay: Lay = _on_loopback,
    *,
    tls: bool = False,
    verify: str = "off",
) -> Callable[[Grounds], Figures]:
    """Migrate an image that nobody writes to; nbdcopy, to compare with, doesn't verify."""

    def measure(grounds: Grounds) -> Figures:
        warm_data(image(grounds))
        with (
            lay(grounds) as link,
            migration(grounds.stage, image(grounds), link, tls=tls) as moving,
        ):
            taken = -moving.ask(verify=verify) + moving.wait()
            return _copied(image(grounds), moving.copy, taken)

    return measure


def _verified(grounds: Grounds) -> Figures:
    """Migrate an image with and without verification, in turns."""
    rates = {
        verify: _move(lambda on: on.stage.image, verify=verify)(grounds)["bandwidth"]
        for verify in ("off", "full")
    }
    return {"times": rates["off"] / rates["full"]}


def _copy(
    image: Callable[[Grounds], Path], lay: Lay = _on_loopback, *, tls: bool = False
) -> Callable[[Grounds], Figures]:
    """Copy it with nbdcopy to nbdkit, flushed at the end."""

    def measure(grounds: Grounds) -> Figures:
        if NBDKIT.missing:
            raise Unmeasured("nbdkit is not installed")
        warm_data(image(grounds))
        copy = blank_image(grounds.stage.folder / "copied", image(grounds).stat().st_size)
        ready = grounds.stage.folder / "nbdkit.pid"
        certificates = grounds.stage.certificates if tls else None
        protection = (f"--tls-certificates={certificates}", "--tls=require") if tls else ()
        with (
            held_port() as port,
            lay(grounds) as link,
            crew() as children,
            _removed(copy, ready),
        ):
            children.start(
                *(*link.far, "nbdkit", "--foreground", "--exit-with-parent"),
                *(f"--pidfile={ready}", "--ipaddr", link.host, "--port", str(port), *protection),
                *("file", str(copy)),
            )
            await_pid(ready)
            host, reached = link.through(port)
            uri = f"nbds://{host}:{reached}/?tls-certificates={certificates}"
            taken = timed(
                [
                    *(*link.near, need("nbdcopy"), "--flush", str(image(grounds))),
                    uri if tls else f"nbd://{host}:{reached}/",
                ],
                PATIENCE,
            )
            return _copied(image(grounds), copy, taken)

    return measure


@contextlib.contextmanager
def _removed(*paths: Path) -> Iterator[None]:
    try:
        yield
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def _copied(image: Path, copy: Path, seconds: float) -> Figures:
    """Say how quickly it was copied, if it was.

    :raises Unmeasured: if a byte of a dense image is not in the copy: that would be no speed at all
    """
    is_dense = allocated(image) >= image.stat().st_size
    if is_dense and (found := difference(image, copy)):
        raise Unmeasured(found)
    return {
        "bandwidth": allocated(image) / seconds,
        "seconds": seconds,
        "allocated": allocated(copy) / allocated(image),
    }


def _handovers(grounds: Grounds) -> Figures:
    """Move a small image away from under a client, many times; see how long that waits."""
    waits = [_handover(grounds, grounds.small) for _ in range(grounds.handovers)]
    parked, any_wait = zip(*waits, strict=True)
    return {
        "median": statistics.median(parked),
        "worst": max(parked),
        "longest": statistics.median(any_wait),
    }


def _large_handover(grounds: Grounds) -> Figures:
    """Move a large one."""
    return {"parked": _handover(grounds, grounds.stage.image)[0]}


def _handover(grounds: Grounds, image: Path) -> tuple[float, float]:
    """Return the longest wait across the handover, and the longest during the migration."""
    warm(image)
    with (
        loopback() as link,
        migration(grounds.stage, image, link, rebind=True) as moving,
        moving.written() as writer,
    ):
        begun = moving.ask()
        ended = moving.wait(destination_ends=False)
        writer.follows()
        seen = writer.stop()
        return seen.handed_over(), seen.longest_wait(begun, ended)


def _client_share(grounds: Grounds) -> Figures:
    """See how much a client gets done during the first pass."""
    image = grounds.stage.image
    warm(image)
    with (
        loopback() as link,
        migration(grounds.stage, image, link) as moving,
        moving.written() as writer,
    ):
        before = time.monotonic()
        time.sleep(BEFORE)
        begun = moving.ask()
        while moving.status().get("migration_pass", "1") in ("0", "1") and moving.source.running:
            time.sleep(GLANCE)
        ended = time.monotonic()
        seen = writer.stop()
        moving.wait()
        return {"share": seen.rate(begun, ended) / seen.rate(before, begun)}


def _outrun(grounds: Grounds) -> Figures:
    """Migrate over a slow link while a client writes faster than that."""
    image = grounds.stage.image
    warm(image)
    with (
        loopback() as link,
        migration(grounds.stage, image, link) as moving,
        moving.written(),
    ):
        return {"seconds": -moving.ask(SLOW_LINK) + moving.wait()}


def _huge(grounds: Grounds) -> Figures:
    """Migrate what is large and nearly empty."""
    warm_data(grounds.huge)
    with loopback() as link, migration(grounds.stage, grounds.huge, link) as moving:
        begun = moving.ask()
        first = _first_byte(moving) - begun
        ended = moving.wait()
        return {"first": first, "seconds": ended - begun, **moving.peaks}


def _first_byte(moving: Migration) -> float:
    """Return when the source said that it has sent something; the end is late enough."""
    while moving.source.running:
        if int(moving.status().get("migration_bytes_sent", "0")):
            break
        time.sleep(GLANCE / 10)
    return time.monotonic()


DENSE = Migrating("dense", _move(lambda on: on.stage.image), _copy(lambda on: on.stage.image))
VERIFIED = Migrating("verified", _verified)
TLS = Migrating(
    "tls",
    _move(lambda on: on.stage.image, tls=True),
    _copy(lambda on: on.stage.image, tls=True),
)
SCATTERED = Migrating("sparse", _move(lambda on: on.sparse), _copy(lambda on: on.sparse))
FAR = {
    milliseconds: Migrating(
        f"delay-{milliseconds}",
        _move(lambda on: on.stage.image, _far(milliseconds / 1000)),
        _copy(lambda on: on.stage.image, _far(milliseconds / 1000)),
    )
    for milliseconds in (25, 50)
}
HANDOVERS = Migrating("handover", _handovers, once=True)
LARGE = Migrating("handover-large", _large_handover)
CLIENT = Migrating("client-share", _client_share)
OUTRUN = Migrating("outrun", _outrun)
TEBIBYTE = Migrating("tebibyte", _huge)

MIGRATIONS = (
    *(DENSE, VERIFIED, TLS, SCATTERED, *FAR.values()),
    *(HANDOVERS, LARGE, CLIENT, OUTRUN, TEBIBYTE),
)
