"""A profile of a process: perf(1) samples its stack some thousand times a second.

Each sample is put into one of the `PLACES` by what the kernel's functions in it are called.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from bench.clients import need
from bench.stage import Unmeasured
from support.processes import PATIENCE

OWN = "its own code"
COPYING = "copying"
NETWORK = "network"
FILE = "file"
WAITING = "waiting"
OTHER = "other"
PLACES = (OWN, COPYING, NETWORK, FILE, WAITING, OTHER)
"""In user space; moving the data, wherever; the rest of the network's and of the file's system
calls; going to sleep and being woken; whatever else the kernel does.
"""

# A second; not a round number, so that nothing that happens regularly is always or never seen.
_FREQUENCY = 3989

# Who copies data between user space and a socket's or the page cache's pages (lib/iov_iter.c).
_COPIES = re.compile(
    r"^(_copy_(to|from)_iter\w*|copy_(folio|page)_(to|from)_iter\w*|rep_movs_alternative"
    r"|copy_user_\w+|__arch_copy_(to|from)_user|memcpy\w*)$"
)

# The system calls that are about files, beside reading and writing.
_OF_FILES = (
    "mincore|cachestat|mmap|munmap|madvise|fsync|fdatasync|sync_file_range|fallocate|lseek|fadvise64"
    "|io_uring_enter"
)

# The first of these that a stack has tells what it is about.
_CALLS = (
    (NETWORK, re.compile(r"^((tcp|unix_stream|sock)_(recv|send)msg\w*|sock_(read|write)_iter)$")),
    (NETWORK, re.compile(r"^do_sendfile$")),
    (FILE, re.compile(r"^(vfs_\w*(read|write)v?|do_iter_\w+|io_(submit|issue|read|wq)\w*)$")),
    (FILE, re.compile(rf"^__\w+_sys_({_OF_FILES})$")),
    (WAITING, re.compile(r"^\w+_sys_(epoll_\w+|p?poll|p?select6?|\w*nanosleep|futex\w*)$")),
)

# What each of the kernel's stacks ends with that a system call, or a thread of the kernel's, began.
_SYSTEM_CALL = re.compile(
    r"^(do_syscall_64|entry_SYSCALL_\w+|invoke_syscall|el0_svc\w*|ret_from_fork\w*)$"
)

Counts = dict[str, int]


@contextlib.contextmanager
def sampled(pid: int, folder: Path) -> Iterator[Counts]:
    """Sample a process, its threads and its children; yield what has, once the context is left, the
    number of samples for each of the `PLACES`.

    :param folder: for perf's file, which is removed.
    :raises Unmeasured: if perf isn't installed, or we aren't root: to others the kernel doesn't
        show its functions (``kernel.perf_event_paranoid``, ``kernel.kptr_restrict``)
    """
    if os.geteuid():
        raise Unmeasured("only root sees where the kernel spends its time")
    kept = folder / "perf.data"
    counts: Counts = {}
    try:
        with _recording(pid, kept):
            yield counts
        counts.update(count(_script(kept)))
    finally:
        kept.unlink(missing_ok=True)


@contextlib.contextmanager
def _recording(pid: int, kept: Path) -> Iterator[None]:
    """Have perf record while the context lasts; it says when it has begun (``--control``)."""
    perf = need("perf")
    with contextlib.ExitStack() as ends:
        orders, to_perf, from_perf, answers = pipes = (*os.pipe(), *os.pipe())
        for descriptor in (to_perf, from_perf):
            ends.callback(os.close, descriptor)
        try:
            process = subprocess.Popen(
                [
                    *(perf, "record", "--quiet", "--event=cpu-clock", f"--freq={_FREQUENCY}"),
                    *("-g", f"--pid={pid}", f"--output={kept}"),
                    *("--delay=-1", f"--control=fd:{orders},{answers}"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                pass_fds=pipes[::3],
            )
        finally:
            for descriptor in pipes[::3]:
                os.close(descriptor)
        ends.enter_context(process)
        ends.callback(process.kill)
        _order(to_perf, "enable")
        ready, _, _ = select.select([from_perf], [], [], PATIENCE)
        if not (ready and os.read(from_perf, 16).startswith(b"ack")):
            process.kill()
            raise Unmeasured(f"perf: {process.communicate()[1].strip()[-300:]}")
        yield
        _order(to_perf, "stop")
        if process.wait(PATIENCE):
            raise Unmeasured(f"perf: {process.communicate()[1].strip()[-300:]}")


def _order(to_perf: int, word: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # it has ended, and says why
        os.write(to_perf, f"{word}\n".encode())


def _script(kept: Path) -> Iterator[str]:
    """Yield the lines of ``perf script``: an empty one before each sample, then its frames."""
    with subprocess.Popen(
        [need("perf"), "script", f"--input={kept}", "--fields=ip,sym"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield from process.stdout


def count(lines: Iterable[str]) -> Counts:
    """Return how many samples fell into each of the `PLACES`.

    :param lines: of ``perf script --fields=ip,sym``: an address and a name each, the innermost
        first, and an empty line between two samples.
    """
    found: Counter[str] = Counter(dict.fromkeys(PLACES, 0))
    stack: list[str] = []
    for line in (*lines, ""):
        if words := line.split():
            stack.append(" ".join(words[1:]))
        elif stack:
            found[place_of(stack)] += 1
            stack = []
    return dict(found)


def place_of(stack: list[str]) -> str:
    """Return which of the `PLACES` a stack belongs to, the innermost function first."""
    if _COPIES.match(stack[0]):
        return COPYING
    if not any(map(_SYSTEM_CALL.match, stack)):
        return OWN
    for name in stack:
        for place, call in _CALLS:
            if call.match(name):
                return place
    return OTHER
