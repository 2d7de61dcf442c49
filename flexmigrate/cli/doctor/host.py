"""Checks of this host: its software, and its limits for a process."""

from __future__ import annotations

import os
import platform
import resource
import select
import sys
from collections.abc import Iterator
from importlib import metadata

from flexmigrate import __version__
from flexmigrate.cli.doctor.findings import Finding, ok, problem, warning
from flexmigrate.image.kernel.io_uring import Ring
from flexmigrate.net.accepting import ENOUGH, queue_length
from flexmigrate.service.descriptors import SPARE, clients_for

_USED = ("Twisted", "pyOpenSSL", "cryptography")


def look(clients: int) -> Iterator[Finding]:
    """Check the host of a server with up to so many *clients*."""
    versions = ", ".join(f"{each} {metadata.version(each)}" for each in _USED)
    python = ".".join(map(str, sys.version_info[:3]))
    yield ok("software", f"flexmigrate {__version__}, Python {python}, {versions}")
    yield _kernel()
    yield _cold_reads()
    yield _descriptors(clients)
    yield _accept_queue(clients)


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
        # Many containers forbid it, and everything works without it.
        return ok(about, f"by threads, which takes more CPU time: no io_uring ({error.strerror})")
    return ok(about, "by io_uring, without threads")


def _descriptors(clients: int) -> Finding:
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)  # a server raises the soft one
    needed = clients + SPARE
    if limit == resource.RLIM_INFINITY or limit >= needed:
        return ok("open files", f"{_limit(limit)} allowed, {needed} needed for {clients} clients")
    return warning(
        "open files",
        f"{limit} allowed: enough for {clients_for(limit)} clients, not for {clients}",
        f"a higher hard limit ({needed}), or LimitNOFILE={needed} in systemd's unit, or a smaller"
        " --max-clients",
    )


def _accept_queue(clients: int) -> Finding:
    about, queue = "accept queue", queue_length()
    if queue is None:
        return ok(about, "its length is unknown on this system")
    if queue < min(clients, ENOUGH):
        return warning(
            about,
            f"{queue} clients can wait to be greeted; if more connect at once, some may wait for"
            " ever",
            f"sysctl net.core.somaxconn={max(ENOUGH, 4096)}",
        )
    return ok(about, f"{queue} clients can connect at once")


def _limit(number: int) -> str:
    return "any number" if number == resource.RLIM_INFINITY else str(number)
