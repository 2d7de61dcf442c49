"""An attempt's connections to the destination."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import LoopingCall

from flexmigrate.client import NBDClientProtocol
from flexmigrate.client.bundle import Bundle
from flexmigrate.errors import ConnectionGone, SessionDeclined
from flexmigrate.migration.source.environment import MigrationEnvironment, Stalled, Timeouts
from flexmigrate.migration.source.proposal import Proposal
from flexmigrate.wire.constants import TransmissionFlag
from flexmigrate.wire.handover import Answer, parse_answer

WATCH_SECONDS = 1.0
"""Between two looks whether the destination makes progress, and how much clients dirty."""


class DestinationConnection:
    """One connection that negotiates the handover, and others that only carry data.

    :param watched: called once a second while the destination is watched.
    :param about: the migration, for logs.
    :ivar client: the connection that negotiated; None before it stands, and once it was given up.
    """

    def __init__(
        self,
        reactor: Any,
        environment: MigrationEnvironment,
        timeouts: Timeouts,
        watched: Callable[[], object],
        about: object = None,
    ) -> None:
        self._reactor = reactor
        self._environment = environment
        self._timeouts = timeouts
        self._watched = watched
        self._about = about
        self._bundle: Bundle | None = None
        self._watchdog = LoopingCall(self._watch)
        self._watchdog.clock = reactor
        self.client: NBDClientProtocol | None = None

    @property
    def bundle(self) -> Bundle:
        """All connections, once there are any."""
        assert self._bundle is not None
        return self._bundle

    @property
    def answer(self) -> Answer | None:
        """Return the destination's answer to the session option; None where it knows none."""
        if self.client is None or self.client.session is None:
            return None
        return parse_answer(self.client.session)

    async def dial(self, proposal: Proposal) -> NBDClientProtocol:
        """Connect, and say what *proposal* has.

        :raises FlexmigrateError: why there is no connection.
        """
        try:
            self.client = await self._environment.dial(self._timeouts.hello_seconds, proposal)
        except SessionDeclined as error:
            raise proposal.declined(error) from error
        return self.client

    def start_transfer(self) -> None:
        """Add the connections that only carry data, and watch the destination from now on."""
        client = self.client
        assert client is not None
        self._bundle = Bundle(client, self._about)
        if client.flags & TransmissionFlag.CAN_MULTI_CONN:
            for _ in range(self._timeouts.connections - 1):
                self._bundle.expect(self._environment.dial(self._timeouts.hello_seconds, None))
        self._watchdog.start(WATCH_SECONDS, now=False)

    def let_go(self, reason: str) -> None:
        """Give the connection up; another may be made."""
        self.stop_watching()
        client, self.client = self.client, None
        if client is not None:
            client.leave(ConnectionGone(reason))

    def hang_up(self, reason: str) -> None:
        """Close the connection."""
        self.stop_watching()
        if self.client is not None:
            self.client.leave(ConnectionGone(reason))

    def stop_watching(self) -> None:
        """Expect no progress any more."""
        if self._watchdog.running:
            self._watchdog.stop()

    def _watch(self) -> None:
        """Give up a destination that is silent while requests are in flight."""
        self._watched()
        client, bundle = self.client, self._bundle
        if client is None or bundle is None or not bundle.requests_in_flight:
            return
        silent = self._reactor.seconds() - bundle.last_progress
        if silent > self._timeouts.request_seconds:
            self.stop_watching()
            client.abort(Stalled(f"the destination made no progress for {silent:.0f} s"))
