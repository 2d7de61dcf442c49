"""This host: what it runs, and what it lets a process have."""

from __future__ import annotations

import os
import platform
import resource
import select
import sys
from collections.abc import Iterator
from importlib import metadata

from flexmigrate import __version__
from flexmigrate.doctor.findings import Finding, ok, problem, warning
from flexmigrate.image.uring import Ring

# Descriptors that a server needs besides its clients': standard streams, reactor, images, sockets.
SPARE_DESCRIPTORS = 64

_USED = ("Twisted", "pyOpenSSL", "cryptography")


def look(clients: int) -> Iterator[Finding]:
    """Look at the host of a server with up to so many *clients*."""
    versions = ", ".join(f"{each} {metadata.version(each)}" for each in _USED)
    python = ".".join(map(str, sys.version_info[:3]))
    yield ok("software", f"flexmigrate {__version__}, Python {python}, {versions}")
    yield _kernel()
    yield _cold_reads()
    yield _descriptors(clients)


def _kernel() -> Finding:
    about, text = "kernel", f"{platform.system()} {platform.release()}, {os.cpu_count()} processors"
    missing = [
        name
        for name, there in (
            ("epoll", hasattr(select, "epoll")),
            ("sendfile", hasattr(os, "sendfile")),
            ("preadv2", hasattr(os, "RWF_NOWAIT")),
        )
        if not there
    ]
    if missing:
        return problem(
            about, f"{text}; without {', '.join(missing)}", "flexmigrate needs Linux 4.14 or newer"
        )
    return ok(about, text)


def _cold_reads() -> Finding:
    about = "cold reads"
    try:
        Ring().close()
    except OSError as error:
        # Many containers forbid it, and all works without.
        return ok(about, f"by threads, which takes more CPU time: no io_uring ({error.strerror})")
    return ok(about, "by io_uring, without threads")


def _descriptors(clients: int) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = clients + SPARE_DESCRIPTORS
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return ok("open files", f"{_limit(soft)} allowed, {needed} needed for {clients} clients")
    enough = hard == resource.RLIM_INFINITY or hard >= needed
    way = f"ulimit -n {needed}" if enough else f"a higher hard limit (it is {hard})"
    return warning(
        "open files",
        f"{soft} allowed, and {clients} clients need {needed}",
        f"{way}, or LimitNOFILE={needed} in systemd's unit, or a smaller --max-clients",
    )


def _limit(number: int) -> str:
    return "any number" if number == resource.RLIM_INFINITY else str(number)
