"""The limit of file descriptors, and the number of clients that it allows.

A server without descriptors can't write a journal, connect to a destination, or answer its
operator. So clients never get the last ones, whatever their limit.
"""

from __future__ import annotations

import contextlib
import resource

from twisted.logger import Logger

from flexmigrate.net.accepting import ENOUGH, queue_length

log = Logger()

SPARE = 256
"""Descriptors that a server reserves: for standard streams, its reactor,
images and their records, 16 connections of a migration, operators, and HTTP.
"""


def raise_limit() -> None:
    """Raise the limit of this process to its hard limit (setrlimit(2)).

    The usual soft limit, 1024, is there for programs that use select(2), which we don't.
    """
    # A filter of system calls may forbid it, which Python reports as a ValueError.
    with contextlib.suppress(OSError, ValueError):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def clients_for(limit: int) -> int:
    """Return the number of clients for which *limit* descriptors are enough.

    :param limit: ``resource.RLIM_INFINITY`` for any number.
    """
    if limit == resource.RLIM_INFINITY:
        return 1 << 31
    return max(limit - SPARE, limit // 4, 1)


def fitting(clients: int) -> int:
    """Return the number of *clients* that this process can have. Log the reason if they are
    fewer, and if the accept queue is too short for them.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    places = min(clients, clients_for(limit))
    if places < clients:
        log.warn(
            "{places} clients can be connected at once, not {clients}: this process may have"
            " {limit} open files",
            places=places,
            clients=clients,
            limit=limit,
        )
    queue = queue_length()
    if queue is not None and queue < min(places, ENOUGH):
        log.warn(
            "if more than {queue} clients connect at once, some may never be greeted:"
            " net.core.somaxconn is {queue}, and {enough} or more would be enough",
            queue=queue,
            enough=ENOUGH,
        )
    return places
