"""The end of the process and its exit status: decided once, and reported to the supervisor
truthfully.

| status | meaning |
|---|---|
| 0 | the image was migrated away, or is here; or the process was told to end, and nothing was
under way |
| 1 | told to end during a migration, or any failure |
| 2 | the command line or the configuration is wrong |
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from flexmigrate.service.supervisor import Describe, Supervisor

log = Logger()

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)

Reload = Callable[[], None]


class Lifetime:
    """The lifetime of a process, as its supervisor sees it: its readiness, and its end.

    :param supervisor: the supervisor to notify, if there is one.
    :ivar status: the exit status, once it is decided; the first decision stands.
    :ivar reason: its reason, in words.
    """

    def __init__(self, reactor: Any, supervisor: Supervisor | None = None) -> None:
        self._reactor = reactor
        self._supervisor = supervisor or Supervisor(reactor, {})
        self.status: int | None = None
        self.reason: str | None = None
        self._settled = False

    def ready(self, describe: Describe, *, serving: bool = True) -> None:
        """Report readiness; *describe* returns a description of the current work from now on.

        :param serving: whether clients can connect; not while it only has a handover confirmed.
        """
        if self.status is None:
            self._supervisor.ready(describe)

    def end(self, status: int, reason: str, *, settled: bool = True) -> None:
        """End the process with *status*, and log the *reason*.

        :param settled: whether the status is final, whatever happens from now on, as with
            an image that has changed its owner.
        """
        if self.status is not None:
            return
        self.status, self.reason = status, reason
        self._settled = settled
        tell = log.info if status == 0 else log.error
        tell("ending with status {status}: {reason}", status=status, reason=reason)
        self._supervisor.ending(reason)
        self._reactor.callWhenRunning(self._reactor.stop)

    def failed(self, reason: str) -> None:
        """Replace success by failure: something went wrong while the process was ending.

        Not if the status is final: an image that has changed its owner stays there, and a
        supervisor that read otherwise would start a second owner.
        """
        log.error("{reason}", reason=reason)
        if self._settled:
            return
        if self.status == 0:
            log.error("ending with status 1: {reason}", reason=reason)
        self.status = self.status or 1

    def heed_signals(
        self, terminate: Callable[[str], Deferred[int]], reload: Reload | None = None
    ) -> None:
        """Ask *terminate* for the exit status when a signal comes, and end with that; call *reload*
        when SIGHUP comes, which ends the process as the others do where there is nothing to reload.

        A server says that it listens before the reactor runs, and may be told to end as soon as it
        has said so; and the reactor, when it begins to run, installs handlers of its own, which
        would end without asking. So signals wait until ours are in their place, however short that
        time is.

        Once the reactor has stopped they wait for ever: the exit status is decided, and Twisted,
        and then the interpreter, would give back to each signal what it does by default.

        A SIGHUP that is ignored already stays so, as nohup(1) wants it.
        """
        heeded = [
            each
            for each in SIGNALS
            if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN
        ]
        signal.pthread_sigmask(signal.SIG_BLOCK, heeded)
        self._reactor.callWhenRunning(self._install, heeded, terminate, reload)
        self._reactor.addSystemEventTrigger(
            "after", "shutdown", signal.pthread_sigmask, signal.SIG_BLOCK, heeded
        )

    def _install(
        self,
        heeded: Sequence[signal.Signals],
        terminate: Callable[[str], Deferred[int]],
        reload: Reload | None,
    ) -> None:
        def received(number: int, frame: FrameType | None) -> None:
            # A handler runs between any two instructions of the main thread; the reactor is its
            # own master.
            name = signal.Signals(number).name
            if number == signal.SIGHUP and reload is not None:
                self._reactor.callFromThread(self._told_to_reload, name, reload)
            else:
                self._reactor.callFromThread(self._signalled, name, terminate)

        for number in heeded:
            signal.signal(number, received)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, heeded)

    def _told_to_reload(self, name: str, reload: Reload) -> None:
        log.info("received {name}", name=name)
        if self.status is None:
            reload()

    def _signalled(self, name: str, terminate: Callable[[str], Deferred[int]]) -> None:
        log.info("received {name}", name=name)
        terminate(name).addCallbacks(
            lambda status: self.end(status, name, settled=False),
            lambda failure: self.end(1, f"{name}, and ending failed: {failure.getErrorMessage()}"),
        )


def exit_with_status_of(lifetime: Lifetime) -> None:
    """Make the interpreter exit with the lifetime's status, under a runner that knows only 0:
    twistd.

    Exit handlers run last-in first-out, so what others registered later (the log's end, the pid
    file's removal is done before) has been done when this one ends the process.
    """

    def leave() -> None:
        if lifetime.status:
            for stream in (sys.stdout, sys.stderr):
                # One may be closed, or full; the status is returned all the same.
                with contextlib.suppress(AttributeError, OSError, ValueError):
                    stream.flush()
            os._exit(lifetime.status)

    atexit.register(leave)
