"""Figures of processes from the kernel: CPU time, memory, and the cores that they may run on.

All of it is about a process *with its descendants*, since some servers fork for each client.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

MIB = 2**20

_TICKS = os.sysconf("SC_CLK_TCK")  # per second


def family(pid: int) -> Iterator[int]:
    """Yield *pid* and all its descendants that run now."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*"):
        for child in _read(task / "children").split():
            yield from family(int(child))


def cpu_seconds(pid: int) -> float:
    """Return the seconds of CPU that the family has used, all threads and ended children included.

    The kernel counts in ticks of 10 ms, so this is of no use for less than some tenths of a second.
    """
    ticks = 0
    for each in family(pid):
        # The name, in brackets, may hold spaces; utime, stime, cutime and cstime are fields 14-17
        # (proc(5)), the first field behind the brackets is the third.
        fields = _read(Path(f"/proc/{each}/stat")).rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))
    return ticks / _TICKS


def is_alive(pid: int) -> bool:
    """Say whether the process runs; one that has ended and that nobody asked about doesn't."""
    state = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()[:1]
    return state not in ([], ["Z"])


def peak_memory(pid: int) -> int:
    """Return the bytes that the family had resident at most (VmHWM), summed over who is alive."""
    found = 0
    for each in family(pid):
        if match := re.search(r"VmHWM:\s+(\d+) kB", _read(Path(f"/proc/{each}/status"))):
            found += int(match[1]) * 1024
    return found


def pins(pinned: bool = True) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what to put before the servers' and the clients' commands.

    Servers get the first core that this process may use and clients the last, so that neither takes
    time from the other. Both are empty where there is one core, or no taskset.
    """
    cores = sorted(os.sched_getaffinity(0))
    if not pinned or len(cores) < 2 or shutil.which("taskset") is None:
        return (), ()
    return _on(cores[0]), _on(cores[-1])


def _on(core: int) -> tuple[str, ...]:
    return "taskset", "--cpu-list", str(core)


def _read(path: Path) -> str:
    """Return what the file says, nothing if the process has ended meanwhile."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
