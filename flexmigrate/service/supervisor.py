"""Messages to the supervisor while the process lives: systemd's protocol, sd_notify(3).

A datagram of lines ``NAME=VALUE`` to the UNIX socket that ``NOTIFY_SOCKET`` names, ``@`` in front
meaning the abstract namespace (unix(7)). ``READY=1`` once clients, or a source, can connect;
``STATUS=`` a sentence for people, when it has changed, and not more often than every few seconds;
``STOPPING=1``; and where ``WATCHDOG_USEC`` asks for it (sd_watchdog_enabled(3)), ``WATCHDOG=1``
from the reactor, for as long as it turns. Without these variables nothing is done.

A supervisor that can't be told is no reason to end: it finds out by itself.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from flexmigrate.log.layouts import one_line

log = Logger()

STATUS_SECONDS = 5.0
"""Between two looks at what there is to say: often enough for people."""

Describe = Callable[[], str]


class Supervisor:
    """See the module.

    :param environ: where the variables are looked for; empty for no supervisor at all.
    """

    def __init__(self, reactor: Any, environ: Mapping[str, str]) -> None:
        self._reactor = reactor
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._watchdog = _watchdog_seconds(environ) if self._address else None
        self._describe: Describe | None = None
        self._said = ""
        self._failed = False
        self._loops: list[LoopingCall] = []

    def ready(self, describe: Describe) -> None:
        """The service is there; from now on *describe* is asked what it is doing."""
        if self._address is None or self._describe is not None:
            return
        self._describe = describe
        self._said = describe()
        self._tell("READY=1", f"STATUS={one_line(self._said)}")
        self._every(STATUS_SECONDS, self._tell_status)
        if self._watchdog is not None:
            # Half the limit is what sd_watchdog_enabled(3) recommends.
            self._every(self._watchdog / 2, self._tell, "WATCHDOG=1")

    def ending(self, reason: str) -> None:
        """The service ends. The watchdog is fed on: ending may take its time, too."""
        self._describe = None
        self._tell("STOPPING=1", f"STATUS={one_line(reason)}")

    def _every(self, seconds: float, call: Callable[..., None], *values: str) -> None:
        loop = LoopingCall(call, *values)
        loop.clock = self._reactor
        self._loops.append(loop)
        loop.start(seconds, now=False)

    def _tell_status(self) -> None:
        if self._describe is not None and (text := self._describe()) != self._said:
            self._said = text
            self._tell(f"STATUS={one_line(text)}")

    def _tell(self, *lines: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as told:
                told.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            # One that is slow to read misses a status; it's told again.
            if not self._failed:
                self._failed = True
                log.warn("cannot notify the supervisor: {error}", error=error)


def _address(name: str) -> str | bytes | None:
    """Return where the socket *name* is, or None if it is no UNIX socket."""
    if name.startswith("@"):
        return b"\0" + os.fsencode(name[1:])
    return name if name.startswith("/") else None


def _watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None  # meant for another process, as with a wrapper
    with contextlib.suppress(ValueError):
        if (microseconds := int(environ.get("WATCHDOG_USEC", ""))) > 0:
            return microseconds / 1e6
    return None
