"""The clients: fio's nbd engine and libnbd's nbdcopy, and what they measured."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.stage import Stage, Unmeasured

# Seconds that a client may take beyond those that it measures: to connect, and to write a report.
GRACE = 20.0


@dataclass(frozen=True)
class Load:
    """A load for fio.

    :ivar pattern: fio's ``rw``.
    :ivar block: bytes of a request.
    :ivar depth: requests under way on each connection.
    :ivar region: offset and length, bytes, to keep to; None for all of the export.
    """

    pattern: str
    block: int
    depth: int
    connections: int = 1
    region: tuple[int, int] | None = None

    def options(self, uri: str, seconds: float) -> list[str]:
        """Return fio's command line."""
        options = [
            *("--name=load", "--ioengine=nbd", f"--uri={uri}", "--direct=1", "--thread"),
            *(f"--rw={self.pattern}", "--rwmixread=70", f"--bs={self.block}"),
            *(f"--iodepth={self.depth}", f"--numjobs={self.connections}"),
            # A map of what was touched would cost the client time and is of no use here.
            "--norandommap",
            *("--time_based", f"--runtime={round(seconds * 1000)}ms"),
            "--output-format=json",
        ]
        if self.region:
            options += [f"--offset={self.region[0]}", f"--size={self.region[1]}"]
        return options


@dataclass(frozen=True)
class Seen:
    """The result of one run of fio.

    :ivar requests: that were answered, in all.
    :ivar rates: requests a second, of each connection.
    :ivar bandwidth: bytes a second.
    :ivar p99: seconds that the slowest hundredth of the requests took at least.
    :ivar busy: of a core, what it used itself.
    """

    requests: int
    rates: tuple[float, ...]
    bandwidth: float
    p99: float
    busy: float

    @property
    def rate(self) -> float:
        """Requests a second, of all connections."""
        return sum(self.rates)


def fio(stage: Stage, uri: str, load: Load) -> Seen:
    """Run fio.

    :raises Unmeasured: if it isn't installed, or it failed
    """
    with start_fio(stage, uri, load) as process:
        return finish_fio(process, stage.scale.seconds)


@contextlib.contextmanager
def start_fio(stage: Stage, uri: str, load: Load) -> Iterator[subprocess.Popen[str]]:
    """Run fio, to be waited for with `finish_fio`; it doesn't outlive the context."""
    argv = [*stage.client_pin, need("fio"), *load.options(uri, stage.scale.seconds)]
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=stage.folder,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def finish_fio(process: subprocess.Popen[str], seconds: float) -> Seen:
    """Wait for fio's report, and read it."""
    try:
        said, complaint = process.communicate(timeout=seconds + GRACE)
    except subprocess.TimeoutExpired:
        raise Unmeasured("fio did not end") from None
    if process.returncode:
        raise Unmeasured(f"fio: {(complaint or said).strip()[-300:]}")
    return read_report(said)


def read_report(said: str) -> Seen:
    """Read fio's report in JSON, which other lines may precede.

    :raises Unmeasured: if it tells of errors, or of nothing
    """
    jobs: list[dict[str, Any]] = json.loads(said[said.index("{") :])["jobs"]
    if failed := [job["error"] for job in jobs if job["error"]]:
        raise Unmeasured(f"fio saw error {failed[0]}")
    ways = [job[way] for job in jobs for way in ("read", "write") if job[way]["total_ios"]]
    if not ways:
        raise Unmeasured("fio got no answer")
    return Seen(
        requests=sum(way["total_ios"] for way in ways),
        rates=tuple(job["read"]["iops"] + job["write"]["iops"] for job in jobs),
        bandwidth=sum(way["bw_bytes"] for way in ways),
        p99=max(way["clat_ns"]["percentile"]["99.000000"] for way in ways) / 1e9,
        busy=sum(job["usr_cpu"] + job["sys_cpu"] for job in jobs) / 100,
    )


def nbdcopy(stage: Stage, source: Path | str, target: str, *options: str) -> float:
    """Copy; return the seconds that it took.

    :param source: a path or a URI; *target* a URI, or ``null:``
    :raises Unmeasured: if nbdcopy isn't installed, or it failed
    """
    argv = [*stage.client_pin, need("nbdcopy"), *options, str(source), target]
    return timed(argv)


def timed(argv: Sequence[str], limit: float = 600.0) -> float:
    """Run a program; return the seconds that it took.

    :raises Unmeasured: if it failed, or took longer than *limit* seconds
    """
    begin = time.monotonic()
    try:
        ran = subprocess.run(
            argv,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        raise Unmeasured(f"{argv[0]} did not end within {limit:.0f} s") from None
    taken = time.monotonic() - begin
    if ran.returncode:
        raise Unmeasured(f"{Path(argv[0]).name}: {ran.stderr.strip()[-300:]}")
    return taken


def need(program: str) -> str:
    """Return the path of a program.

    :raises Unmeasured: if it isn't installed
    """
    if (path := shutil.which(program)) is None:
        raise Unmeasured(f"{program} is not installed")
    return path
