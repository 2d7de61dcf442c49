"""The demonstration itself: serve, write, migrate, go on writing, verify.

Each act either brings what it promises or raises: a verdict is only reached through all of them.
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from demo.scenery import Scenery, is_clean
from demo.screen import Screen
from support import operator
from support.images import allocated
from support.processes import Child, Children, flexmigrate

HOST = "127.0.0.1"
MIB = 2**20

# Seconds between two looks at what goes on: often enough for a line that seems to move.
_GLANCE = 0.1

# Seconds that a migration may take before the demonstration gives up on it.
_PATIENCE = 300.0

# What `serve` logs at the end of a migration; see docs/operators.rst.
_SUMMARY = re.compile(
    r"migration complete: (?P<sent>\d+) bytes in (?P<passes>\d+) pass\w*, .*?(?P<rate>\d+) MiB/s; "
    r"clients were parked for (?P<parked>[\d.]+) s"
)
_TALLY = re.compile(
    r"verified writes=(?P<writes>\d+) reads=(?P<reads>\d+) connections=(?P<connections>\d+)"
    r" longest_wait_ms=(?P<wait>[\d.]+)"
)
_VERIFIED = re.compile(r"(?P<blocks>\d+) blocks were written and acknowledged; 0 blocks are wrong")


class Failed(Exception):
    """An act did not bring what it promises; the text says which and why."""


@dataclass(frozen=True)
class Figures:
    """What the processes said about it, as they said it.

    :ivar sent: bytes that the source sent.
    :ivar passes: walks over what had to be sent.
    :ivar rate: at which it was sent, in MiB a second.
    :ivar parked: how long the source made its clients wait, in seconds.
    :ivar wait: the longest that the client waited for an answer, in seconds.
    :ivar writes: how many were acknowledged.
    :ivar reads: how many were compared with the client's record.
    :ivar connections: that the client made.
    :ivar blocks: that were written, and compared at the end.
    """

    sent: int
    passes: int
    rate: int
    parked: float
    wait: float
    writes: int
    reads: int
    connections: int
    blocks: int


class Play:
    """One run; a context manager that leaves no process behind.

    :param max_bps: bytes a second that the migration may send; 0 for no limit.
    :param seconds: that the client writes before the migration, and after it.
    """

    def __init__(self, scenery: Scenery, screen: Screen, max_bps: int, seconds: float) -> None:
        self._scenery = scenery
        self._screen = screen
        self._max_bps = max_bps
        self._seconds = seconds
        self._children = Children()
        self.cast: list[Child] = []

    def __enter__(self) -> Play:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for child in self.cast:
            child.end()

    def run(self) -> Figures:
        """Play all acts.

        :raises Failed: if anything is not as it should be
        """
        try:
            return self._run()
        except AssertionError as error:  # what support.processes raises: too late, or ended early
            raise Failed(str(error)) from error

    def _run(self) -> Figures:
        source, port = self._serve()
        self._note(f"serving {self._scenery.source.name} on {HOST}:{port}, to a client that writes")
        client = self._start_client(port)
        self._let_it_write(client, "before the migration")
        destination, target = self._listen(port)
        self._note(f"migrating to a second server, which will serve on {HOST}:{port}, too")
        self._mirror(target)
        summary = self._follow(source, client)
        self._note("the second server has the image; the client goes on there")
        self._let_it_write(client, "after the migration")
        tally = self._dismiss(client, destination)
        self._note("comparing the image with the client's record, byte by byte")
        blocks = self._verify()
        return Figures(
            sent=int(summary["sent"]),
            passes=int(summary["passes"]),
            rate=int(summary["rate"]),
            parked=float(summary["parked"]),
            wait=float(tally["wait"]) / 1000,
            writes=int(tally["writes"]),
            reads=int(tally["reads"]),
            connections=int(tally["connections"]),
            blocks=blocks,
        )

    # The acts

    def _serve(self) -> tuple[Child, int]:
        source = self._flexmigrate(
            *("serve", "--addr", HOST, "--port", "0"),
            *("--file", str(self._scenery.source), "--sock", str(self._sock("source"))),
        )
        return source, source.listening()[1]

    def _start_client(self, port: int) -> Child:
        return self._keep(
            self._children.python(
                *("-m", "support.verifying_writer", "write", HOST, str(port), "--depth", "16"),
                *self._record(),
                *("--blocks", str(self._scenery.blocks)),
            )
        )

    def _let_it_write(self, client: Child, when: str) -> None:
        """Wait until the client has written for a while, and something was acknowledged."""
        before = _acknowledged(client)
        end = time.monotonic() + self._seconds
        limit = end + _PATIENCE
        while time.monotonic() < end or _acknowledged(client) == before:
            if time.monotonic() > limit:
                raise Failed(f"{when}, no write was acknowledged\n{client.story()}")
            self._expect_running(client)
            self._screen.progress(f"  {when}: {_acknowledged(client):,} writes acknowledged")
            time.sleep(_GLANCE)

    def _listen(self, port: int) -> tuple[Child, int]:
        destination = self._flexmigrate(
            *("listen", "--addr", HOST, "--port", "0"),
            *("--file", str(self._scenery.destination), "--sock", str(self._sock("destination"))),
            *("--rebind-addr", HOST, "--rebind-port", str(port)),
        )
        return destination, destination.listening()[1]

    def _mirror(self, target: int) -> None:
        asked = flexmigrate(
            *("mirror", "--addr", HOST, "--port", str(target)),
            *("--sock", str(self._sock("source")), "--max-bps", str(self._max_bps)),
        )
        if asked.returncode:
            raise Failed(f"flexmigrate mirror: {asked.stderr.decode(errors='backslashreplace')}")

    def _follow(self, source: Child, client: Child) -> re.Match[str]:
        """Show how the migration goes; return what the source says when it has ended with 0."""
        limit = time.monotonic() + _PATIENCE
        total = 1
        while not _ended(source):
            if time.monotonic() > limit:
                raise Failed(f"the migration took longer than {_PATIENCE:.0f} s\n{source.story()}")
            self._expect_running(client)
            # The source may end between two looks.
            with contextlib.suppress(OSError, ValueError):
                status = operator.status(self._sock("source"))
                total = max(total, int(status.get("migration_bytes_left", 0)))
                self._screen.progress(_describe(status, total, _acknowledged(client)))
        self._expect_success(source, "the source")
        return source.wait_for(_SUMMARY)

    def _dismiss(self, client: Child, destination: Child) -> re.Match[str]:
        """End the client, then its server; return what the client has to say."""
        client.send(signal.SIGTERM)
        self._expect_success(client, "the client")
        tally = client.wait_for(_TALLY)
        if int(tally["connections"]) < 2:
            raise Failed("the client never went over to the second server")
        destination.send(signal.SIGTERM)
        self._expect_success(destination, "the destination")
        return tally

    def _verify(self) -> int:
        image = self._scenery.destination
        verifier = self._keep(
            self._children.python(
                *("-m", "support.verifying_writer", "verify", "--image", str(image)),
                *self._record(),
            )
        )
        while not _ended(verifier):
            self._screen.progress("  comparing")
        self._expect_success(verifier, "the comparison")
        if not is_clean(image):
            raise Failed("e2fsck finds errors in the filesystem of the destination's image")
        if allocated(image) > 1.1 * allocated(self._scenery.source) + MIB:
            raise Failed("the destination's image has lost its holes")
        return int(verifier.wait_for(_VERIFIED)["blocks"])

    # Details

    def _note(self, text: str) -> None:
        self._screen.note(text)

    def _sock(self, name: str) -> Path:
        return self._scenery.folder / f"{name}.sock"

    def _record(self) -> Iterator[str]:
        yield from ("--journal", str(self._scenery.folder / "journal"))
        yield from ("--original", str(self._scenery.original))

    def _flexmigrate(self, *arguments: str) -> Child:
        return self._keep(self._children.flexmigrate(*arguments))

    def _keep(self, child: Child) -> Child:
        self.cast.append(child)
        return child

    def _expect_running(self, client: Child) -> None:
        if not client.running:
            raise Failed(f"the client gave up\n{client.story()}")

    def _expect_success(self, child: Child, name: str) -> None:
        status = child.wait()
        if status:
            raise Failed(f"{name} ended with status {status}\n{child.story()}")


def _ended(child: Child) -> bool:
    """Return whether the process has ended, within the time of a glance."""
    try:
        child.process.wait(_GLANCE)
    except subprocess.TimeoutExpired:
        return False
    return True


def _acknowledged(client: Child) -> int:
    for line in reversed(client.lines):
        if match := re.match(r"acknowledged (\d+)", line):
            return int(match[1])
    return 0


def _describe(status: dict[str, str], total: int, writes: int) -> str:
    left = int(status.get("migration_bytes_left", total))
    done = 20 * (total - left) // total
    return (
        f"  [{'#' * done}{'.' * (20 - done)}]  {status.get('migration_phase', '')},"
        f" pass {status.get('migration_pass', 0)}: {left / MIB:.1f} MiB to go,"
        f" {int(status.get('migration_speed', 0)) / MIB:.0f} MiB/s;"
        f" {writes:,} writes acknowledged"
    )
