"""One migration, with real processes: a source, a destination, and who watches them.

The operator's socket is asked directly, since starting a command takes longer than some of what is
measured here.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.link import Link
from bench.processes import peak_memory
from bench.servers import HOST, crew, start_module
from bench.stage import Stage, Unmeasured
from bench.writer import TICKS
from support import operator
from support.images import blank_image
from support.processes import Child, Children, script

# Seconds that any migration here may take.
PATIENCE = 180.0

# Seconds between two looks at a process: little beside what is measured, and little work.
GLANCE = 0.01

_numbers = itertools.count(1)


@dataclass
class Recorded:
    """The observations of the writer; see `bench.writer`."""

    answers: dict[int, int]
    waits: list[tuple[float, float, bool]]

    def rate(self, begin: float, end: float) -> float:
        """Return the answers a second between two times of the monotonic clock.

        :raises Unmeasured: if there is hardly any time between them
        """
        first, last = int(begin * TICKS) + 1, int(end * TICKS)
        if last <= first:
            raise Unmeasured("it was over before anything could be counted")
        return (
            sum(self.answers.get(tick, 0) for tick in range(first, last)) * TICKS / (last - first)
        )

    def longest_wait(self, begin: float, end: float) -> float:
        """Return the longest time from a request to its answer that touches this span, seconds."""
        touching = (
            answered - since
            for since, answered, _ in self.waits
            if answered > begin and since < end
        )
        return max(touching, default=0.0)

    def handed_over(self) -> float:
        """Return the longest time from a request, sent on one connection, to its answer on the
        next, seconds.
        """
        return max(
            (answered - since for since, answered, moved in self.waits if moved), default=0.0
        )


@dataclass
class Migration:
    """A source and a destination, ready.

    :ivar peaks: bytes that they had resident at most, as far as has been looked.
    """

    image: Path
    copy: Path
    source: Child
    destination: Child
    sock: Path
    place: tuple[str, int]
    children: Children
    port: int
    tls: Path | None = None
    peaks: dict[str, int] = field(default_factory=dict)

    def ask(self, max_bps: int = 0, verify: str = "full") -> float:
        """Have it begin; return the time at which it was asked for."""
        host, port = self.place
        settings = [f"verify={verify}"]
        if self.tls:
            settings += ["tls=require", f"tls-certificates={self.tls}", "tls-hostname=localhost"]
        limit = ["0.0.0.0", str(max_bps)] if max_bps else []
        begun = time.monotonic()
        code, text = operator.ask(self.sock, "mirror", host, str(port), "exit", *limit, *settings)
        if code:
            raise Unmeasured(f"mirror: {text}")
        return begun

    def status(self) -> dict[str, str]:
        """Return the source's status, empty if it has ended."""
        with contextlib.suppress(OSError, ValueError):
            return operator.status(self.sock)
        return {}

    def wait(self, *, destination_ends: bool = True) -> float:
        """Wait for both ends; return the time at which the last one ended.

        :raises Unmeasured: if one of them tells of a failure, or of nothing for `PATIENCE`
        """
        waited_for = [self.source, self.destination] if destination_ends else [self.source]
        deadline = time.monotonic() + PATIENCE
        while any(child.running for child in waited_for):
            if time.monotonic() > deadline:
                raise Unmeasured(f"no end within {PATIENCE:.0f} s: {self.status()}")
            self.look()
            time.sleep(GLANCE)
        ended = time.monotonic()
        for child in waited_for:
            if status := child.wait():
                raise Unmeasured(f"ended with {status}: {child.story()[-400:]}")
        return ended

    def look(self) -> None:
        """Note how much memory they have had so far."""
        for name, child in (("source", self.source), ("destination", self.destination)):
            self.peaks[name] = max(self.peaks.get(name, 0), peak_memory(child.pid))

    @contextlib.contextmanager
    def written(self) -> Iterator[WriterAtWork]:
        """Have a client write to the source while the context lasts."""
        child = start_module(self.children, "bench.writer", HOST, str(self.port))
        child.wait_for("^connection 1 answers$")
        yield WriterAtWork(child)
        child.end()


@dataclass
class WriterAtWork:
    """A client that writes."""

    child: Child

    def follows(self) -> None:
        """Wait until it is answered by the second server."""
        self.child.wait_for("^connection [2-9] answers$")

    def stop(self) -> Recorded:
        """End it, and return what it saw."""
        self.child.send(signal.SIGTERM)
        self.child.expect_exit(0)
        seen = json.loads(self.child.lines[-1])
        answers = {int(tick): number for tick, number in seen["answers"].items()}
        return Recorded(
            answers, [(since, answered, moved) for since, answered, moved in seen["waits"]]
        )


@contextlib.contextmanager
def migration(
    stage: Stage, image: Path, link: Link, *, tls: bool = False, rebind: bool = False
) -> Iterator[Migration]:
    """Start a source with *image* and a destination with an empty one; nothing moves yet.

    :param rebind: the destination serves at the source's address afterwards.
    """
    folder = stage.folder / f"migration-{next(_numbers)}"
    folder.mkdir()
    copy = blank_image(folder / "copy", image.stat().st_size)
    # The image is migrated again and again: nobody but us knows that the last copy was thrown away.
    for each in (image, copy):
        each.with_name(f"{each.name}.handover").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        os.removexattr(image, "user.flexmigrate.handover")
    certificates = stage.certificates if tls else None
    protection = ("--tls", "require", "--tls-certificates", str(certificates)) if tls else ()
    with crew() as children:
        sock = stage.sockets / folder.name
        source = children.start(
            *(*link.near, script("flexmigrate"), "serve", "--addr", HOST, "--port", "0"),
            *("--file", str(image), "--sock", str(sock)),
        )
        port = source.listening()[1]
        destination = children.start(
            *(*link.far, script("flexmigrate"), "listen", "--addr", link.host, "--port", "0"),
            *("--file", str(copy), *protection),
            *(("--rebind-addr", HOST, "--rebind-port", str(port)) if rebind else ()),
        )
        place = link.through(destination.listening()[1])
        yield Migration(image, copy, source, destination, sock, place, children, port, certificates)
    copy.unlink()
