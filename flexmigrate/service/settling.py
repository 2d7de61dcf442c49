"""``serve`` of an image that was committed to a destination: it isn't served, but its handover is
settled, if the destination can be reached.
"""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from flexmigrate.control.grammar import Action, MirrorRequest, parse_mirror
from flexmigrate.errors import ConnectionGone, FlexmigrateError, ImageError
from flexmigrate.migration.handover import Gift, NotConfirmed, confirm, finish, settling
from flexmigrate.service.closing import take_all
from flexmigrate.service.host import ImageHost
from flexmigrate.service.lifetime import Lifetime
from flexmigrate.service.migrating import client_tls, dial

log = Logger()

HELLO_SECONDS = 5.0
"""For the destination to agree to the session, once it is connected to."""


class SettleService(Service):
    """Asks the destination once; the process ends with 0 if it says that it owns the image.

    :param host: the image, whose journal says that it is committed by a session.
    :raises ImageError: the journal doesn't say how the destination is reached.
    :raises UsageError: the certificates that it names can't be used.
    """

    def __init__(self, reactor: Any, host: ImageHost, lifetime: Lifetime, pool: Any) -> None:
        record = host.ownership.record
        assert record is not None, "it is committed"
        self._reactor = reactor
        self._host = host
        self._lifetime = lifetime
        self._pool = pool
        self._record = record
        self._request = _request(host, record.mirror)
        self._tls = client_tls(self._request.tls, self._request.address.host)

    def startService(self) -> None:
        """Begin to ask."""
        super().startService()  # type: ignore[no-untyped-call]  # Twisted's
        self._pool.start()
        self._lifetime.heed_signals(lambda reason: succeed(1))
        # Whoever waits for a server to be ready shouldn't take what comes for its failure to begin.
        self._lifetime.ready(lambda: f"asking {self._record.other_side} to confirm a handover")
        asking = Deferred.fromCoroutine(self._settle())
        asking.addCallbacks(self._settled, self._unsettled)

    async def _settle(self) -> None:
        opening = settling(self._record, self._host.full_name)
        client = await dial(self._reactor, self._request, opening, HELLO_SECONDS, self._tls)
        try:
            if client.session is None:
                raise NotConfirmed("whoever listens there now knows no sessions")
            await confirm(self._reactor, client)
            await finish(self._reactor, self._gift(), client, log)
        finally:
            client.abort(ConnectionGone("the handover was asked about"))

    def _gift(self) -> Gift:
        host = self._host
        action = Action.UNLINK if self._record.unlink else Action.EXIT
        return Gift(host.image, host.background, host.ownership, action)

    def _settled(self, _: None) -> None:
        self._lifetime.end(
            0, f"{self._host.image.path} is at {self._record.other_side}, which has confirmed it"
        )

    def _unsettled(self, failure: Failure) -> None:
        if not failure.check(FlexmigrateError, OSError):
            log.failure("the error was not one that is expected here", failure)
        path = self._host.image.path
        self._lifetime.end(
            1,
            f"{path} was handed over to {self._record.other_side} ({self._record.time}), which has "
            f"not confirmed it: {failure.getErrorMessage()}. It is not served here. Start the "
            f"destination's server again and repeat this; or see 'flexmigrate whose {path}' at "
            "both ends, then 'flexmigrate release' here or 'flexmigrate take'",
        )

    def stopService(self) -> Deferred[None]:
        """Let go of the image."""
        super().stopService()  # type: ignore[no-untyped-call]  # Twisted's
        return Deferred.fromCoroutine(take_all(self._lifetime, self._host.close, self._pool.stop))


def _request(host: ImageHost, lines: tuple[str, ...]) -> MirrorRequest:
    try:
        return parse_mirror(list(lines[1:]))
    except FlexmigrateError as error:
        raise ImageError(
            f"{host.image.path}: its journal doesn't say how its destination is reached: {error}"
        ) from error
