"""Ending in order: each step is taken, whatever became of those before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.logger import Logger

from flexmigrate.control.server import ControlPort
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


def close_control(port: ControlPort | None) -> Deferred[None]:
    """Close the operator's socket, if there is one, for whoever comes now."""
    return succeed(None) if port is None else port.stopListening()


def answer_operators(port: ControlPort | None) -> Deferred[None]:
    """Fire once whoever has asked for something there was answered."""
    return succeed(None) if port is None else port.finish()
