"""The commands that need a reactor, run in one; each returns the exit status."""

from __future__ import annotations

import os
from collections.abc import Callable

from flexmigrate.config import ListenConfig, ServeConfig
from flexmigrate.service import build, process_reactor
from flexmigrate.service.descriptors import raise_limit
from flexmigrate.service.lifetime import Lifetime
from flexmigrate.service.supervisor import Supervisor


def later(seconds: float, call: Callable[[], None]) -> None:
    """Make the process's reactor call *call* after so many seconds; from any thread."""
    the_reactor = process_reactor()
    the_reactor.callFromThread(the_reactor.callLater, seconds, call)


def run_service(config: ServeConfig | ListenConfig) -> int:
    """Run a server until it ends.

    :raises FlexmigrateError: the server can't be started.
    """
    the_reactor = process_reactor()
    raise_limit()
    lifetime = Lifetime(the_reactor, Supervisor(the_reactor, os.environ))
    service = build(the_reactor, config, lifetime)
    service.privilegedStartService()  # type: ignore[no-untyped-call]  # Twisted's
    service.startService()
    the_reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    the_reactor.run()
    return 1 if lifetime.status is None else lifetime.status
