"""The rows of the serving table: which figure of which task, and what it is to reach."""

from __future__ import annotations

from bench import tasks
from bench.figures import Aim, at_least, at_most, ratio_at_least, ratio_at_most
from bench.processes import MIB
from bench.report import (
    MEBIBYTES,
    MIB_PER_SECOND,
    MICROSECONDS,
    MILLISECONDS,
    OF_THE_MEAN,
    PER_CENT,
    PER_SECOND,
    Row,
    Unit,
)
from bench.tasks import Task


def _row(
    task: Task, title: str, unit: Unit, figure: str, aim: Aim, *, name: str | None = None
) -> Row:
    """Make a row about one task, and with its name, unless that has been taken."""
    return Row(name or task.name, title, unit, figure, (task,), aim)


# In the order of `tasks.STREAM`.
_STREAM = (
    ("4 KiB random read, depth 1", PER_SECOND, "rate", 1.3),
    ("4 KiB random write, depth 1", PER_SECOND, "rate", 1.2),
    ("4 KiB random read, depth 64", PER_SECOND, "rate", 1.3),
    ("4 KiB random write, depth 64", PER_SECOND, "rate", 1.2),
    ("4 KiB random 70/30 mix, 4 connections, depth 16", PER_SECOND, "rate", 1.3),
    ("1 MiB sequential read, depth 16", MIB_PER_SECOND, "bandwidth", 1.5),
    ("1 MiB sequential write, depth 16", MIB_PER_SECOND, "bandwidth", 1.2),
)

ROWS = (
    *(
        _row(task, title, unit, figure, ratio_at_least(ratio))
        for task, (title, unit, figure, ratio) in zip(tasks.STREAM, _STREAM, strict=True)
    ),
    *(
        _row(task, f"{title}, UNIX socket", unit, figure, ratio_at_least(1.1))
        for task, (title, unit, figure, _) in zip(tasks.OVER_UNIX, _STREAM, strict=True)
    ),
    _row(
        tasks.COPY_OUT,
        "nbdcopy, the whole image to nowhere",
        MIB_PER_SECOND,
        "bandwidth",
        ratio_at_least(1.0),
    ),
    _row(
        tasks.COPY_IN,
        "nbdcopy, a quarter of the image into it",
        MIB_PER_SECOND,
        "bandwidth",
        ratio_at_least(1.0),
    ),
    _row(
        tasks.COLD,
        "4 KiB random read, cold cache, depth 32",
        PER_SECOND,
        "rate",
        ratio_at_least(0.95),
    ),
    _row(
        tasks.READ_64,
        "CPU time of the server for a 4 KiB read, depth 64",
        MICROSECONDS,
        "cpu",
        ratio_at_most(0.8),
        name="cpu-read-4k-64",
    ),
    _row(
        tasks.WRITE_64,
        "CPU time of the server for a 4 KiB write, depth 64",
        MICROSECONDS,
        "cpu",
        ratio_at_most(0.8),
        name="cpu-write-4k-64",
    ),
    _row(
        tasks.TLS,
        "1 MiB sequential read, depth 16, TLS",
        MIB_PER_SECOND,
        "bandwidth",
        ratio_at_least(0.7),
    ),
    *(
        _row(
            task,
            f"4 KiB random read, depth 4, {connections} connections",
            PER_SECOND,
            "rate",
            ratio_at_least(1.0),
        )
        for connections, task in tasks.CROWDS.items()
    ),
    _row(
        tasks.CROWDS[64],
        "64 busy connections, the slowest",
        OF_THE_MEAN,
        "fairness",
        at_least(0.5),
        name="busy-64",
    ),
    _row(tasks.IDLE, "64 idle connections, CPU time", PER_CENT, "cpu", at_most(0.01)),
    _row(
        tasks.BESIDE,
        "warm 4 KiB read, depth 1, beside a cold reader, p99",
        MILLISECONDS,
        "p99",
        at_most(0.005),
    ),
    Row(
        "memory",
        "resident memory, the most of all these rows",
        MEBIBYTES,
        "memory",
        tasks.TASKS,
        at_most(100 * MIB),
    ),
)
