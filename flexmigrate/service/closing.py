"""Ending in order: each step is taken, whatever became of those before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

from flexmigrate.service.lifetime import Lifetime

log = Logger()

Step = Callable[[], Any]


async def take_all(lifetime: Lifetime, *steps: Step) -> None:
    """Take *steps* one after the other; of one that fails, *lifetime* is told."""
    for step in steps:
        try:
            await maybeDeferred(step)
        except Exception as error:  # noqa: BLE001  # the image is flushed, whatever else breaks
            lifetime.failed(f"ending: {error}")


def close_port(port: IListeningPort | None) -> Deferred[None]:
    """Close *port*, if there is one, and fire when that is done."""
    if port is None:
        return succeed(None)
    return maybeDeferred(port.stopListening).addCallback(lambda _: None)
