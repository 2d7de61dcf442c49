"""The tasks whose figures are measured, each with a server of its own.

A task returns named figures. Several rows of the table may read the same task's: that of random
reads tells of their rate and of the server's time for each.

=================  =============================================================
figure             unit
=================  =============================================================
``rate``           requests a second
``bandwidth``      bytes a second
``cpu``            seconds of the server for each request; where nothing is
                   asked of it, seconds in a second
``p99``            seconds; slowest hundredth of the requests
``fairness``       requests of the slowest connection, of the mean's
``client``         of a core, what the client used
``memory``         bytes resident at most
=================  =============================================================
"""

from __future__ import annotations

import contextlib
import resource
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from bench.clients import Load, finish_fio, fio, nbdcopy, start_fio
from bench.processes import MIB
from bench.servers import Kind, Running, serving
from bench.stage import Stage, chill, warm

Figures = dict[str, float]

# Seconds after which what a cold reader has read is dropped again: by then the quickest server
# has brought some part of it into the page cache.
CHILL_AGAIN = 0.25


@dataclass(frozen=True)
class Task:
    """One thing to measure.

    :ivar measure: asks the running server.
    :ivar cold: the image is not in the page cache when it begins.
    """

    name: str
    measure: Callable[[Stage, Running], Figures]
    unix: bool = False
    tls: bool = False
    cold: bool = False

    def run(self, stage: Stage, kind: Kind) -> Figures:
        """Start a server, measure it, and end it.

        :raises Unmeasured: if that is not possible
        """
        (chill if self.cold else warm)(stage.image)
        with serving(kind, stage, unix=self.unix, tls=self.tls) as server:
            figures = self.measure(stage, server)
            return {**figures, "memory": server.memory()}


def _load(load: Load) -> Callable[[Stage, Running], Figures]:
    """Have one fio do it."""

    def measure(stage: Stage, server: Running) -> Figures:
        before = server.cpu()
        seen = fio(stage, server.uri, load)
        return {
            "rate": seen.rate,
            "bandwidth": seen.bandwidth,
            "cpu": (server.cpu() - before) / seen.requests,
            "p99": seen.p99,
            "fairness": min(seen.rates) * len(seen.rates) / seen.rate,
            "client": seen.busy,
        }

    return measure


def _copy_out(stage: Stage, server: Running) -> Figures:
    """Read all of it once with nbdcopy, as that does it unless told otherwise."""
    return {"bandwidth": stage.scale.size / nbdcopy(stage, server.uri, "null:")}


def _copy_encrypted(stage: Stage, server: Running) -> Figures:
    """Read all of it once, as fio would: it can't be told which authority to trust."""
    before, client = server.cpu(), _used_by_clients()
    seconds = nbdcopy(
        *(stage, server.uri, "null:"),
        *("--connections=1", "--requests=16", f"--request-size={MIB}"),
    )
    requests = stage.scale.size / MIB
    return {
        "bandwidth": stage.scale.size / seconds,
        "rate": requests / seconds,
        "cpu": (server.cpu() - before) / requests,
        "client": (_used_by_clients() - client) / seconds,
    }


def _used_by_clients() -> float:
    """Return the seconds of CPU time of all that have ended and were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _copy_in(stage: Stage, server: Running) -> Figures:
    """Write the payload with nbdcopy; the disk is not waited for."""
    return {"bandwidth": stage.payload.stat().st_size / nbdcopy(stage, stage.payload, server.uri)}


def _idle(connections: int) -> Callable[[Stage, Running], Figures]:
    """Connect, ask for a block, and say nothing more."""

    def measure(stage: Stage, server: Running) -> Figures:
        with contextlib.ExitStack() as ends:
            for _ in range(connections):
                client = server.client()
                ends.callback(client.close)
                client.read(0, 4096)
            before, begin = server.cpu(), time.monotonic()
            time.sleep(stage.scale.seconds)
            return {"cpu": (server.cpu() - before) / (time.monotonic() - begin)}

    return measure


def _warm_beside_cold(stage: Stage, server: Running) -> Figures:
    """Read warm blocks from the first quarter while another client reads cold ones elsewhere."""
    quarter = stage.scale.size // 4
    warm_load = Load("randread", 4096, 1, region=(0, quarter))
    cold_load = Load("randread", 4096, 32, region=(2 * quarter, 2 * quarter))
    with (
        _kept_cold(stage, 2 * quarter),
        start_fio(stage, server.uri, cold_load) as other,
        start_fio(stage, server.uri, warm_load) as process,
    ):
        seen = finish_fio(process, stage.scale.seconds)
        finish_fio(other, stage.scale.seconds)
    return {"p99": seen.p99, "rate": seen.rate}


@contextlib.contextmanager
def _kept_cold(stage: Stage, offset: int) -> Iterator[None]:
    """Drop the image from *offset* on from the page cache, again and again."""
    over = threading.Event()

    def drop() -> None:
        while not over.wait(CHILL_AGAIN):
            chill(stage.image, offset)

    chill(stage.image, offset)
    thread = threading.Thread(target=drop)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


READ_1 = Task("read-4k-1", _load(Load("randread", 4096, 1)))
WRITE_1 = Task("write-4k-1", _load(Load("randwrite", 4096, 1)))
READ_64 = Task("read-4k-64", _load(Load("randread", 4096, 64)))
WRITE_64 = Task("write-4k-64", _load(Load("randwrite", 4096, 64)))
MIX = Task("mix-4k-4x16", _load(Load("randrw", 4096, 16, connections=4)))
READ_LARGE = Task("read-1m-16", _load(Load("read", MIB, 16)))
WRITE_LARGE = Task("write-1m-16", _load(Load("write", MIB, 16)))
STREAM = (READ_1, WRITE_1, READ_64, WRITE_64, MIX, READ_LARGE, WRITE_LARGE)

OVER_UNIX = tuple(replace(task, name=f"unix-{task.name}", unix=True) for task in STREAM)

CROWDS = {
    number: Task(f"clients-{number}", _load(Load("randread", 4096, 4, connections=number)))
    for number in (1, 4, 16, 64)
}
COPY_OUT = Task("copy-out", _copy_out)
COPY_IN = Task("copy-in", _copy_in)
COLD = Task("cold-read-4k-32", _load(Load("randread", 4096, 32)), cold=True)
TLS = Task("tls-read-1m-16", _copy_encrypted, tls=True)
IDLE = Task("idle-64", _idle(64))
BESIDE = Task("warm-beside-cold", _warm_beside_cold)

TASKS = (*STREAM, *OVER_UNIX, *CROWDS.values(), COPY_OUT, COPY_IN, COLD, TLS, IDLE, BESIDE)
