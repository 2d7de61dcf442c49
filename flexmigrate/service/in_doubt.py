"""The role of a server whose image was handed over, and whose destination has not confirmed that:
the image isn't served, and the destination is asked once.

Meanwhile the operator's socket and the metrics are open, and show that the
image isn't owned, and what the server does. A place that can't be opened is only logged, since
the confirmation doesn't depend on it.
"""

from __future__ import annotations

from typing import NoReturn

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from flexmigrate.control.grammar import parse_mirror
from flexmigrate.errors import (
    CommandError,
    ConnectionGone,
    FlexmigrateError,
    ImageError,
    SessionDeclined,
)
from flexmigrate.migration.request import Action, MirrorRequest
from flexmigrate.migration.source.handover import (
    HandoverTerms,
    NotConfirmed,
    confirm,
    finish,
    settling,
)
from flexmigrate.migration.source.proposal import Proposal
from flexmigrate.net.acl import AccessList
from flexmigrate.service.dialling import client_tls, dial
from flexmigrate.service.host import Host, ImageHost
from flexmigrate.service.port import ListeningPort
from flexmigrate.service.shell import Shell, Step
from flexmigrate.service.status_values import settling_status
from flexmigrate.service.views import export_view, server_view
from flexmigrate.telemetry.history import Tally
from flexmigrate.telemetry.states import SourceState
from flexmigrate.telemetry.status import Status
from flexmigrate.web.view import ServerView

log = Logger()

HELLO_SECONDS = 5.0
"""Seconds for the destination to agree to the session, once the connection is established."""


class InDoubt:
    """The role; it asks the destination once, and ends with 0 if the destination owns the image.

    :param host: the image, whose journal says that it is committed by a session.
    :raises ImageError: the journal doesn't have the destination's address.
    :raises UsageError: the certificates that it names can't be used.
    """

    is_reachable = False

    def __init__(self, shell: Shell, host: ImageHost) -> None:
        record = host.ownership.record
        assert record is not None, "it is committed"
        self._shell = shell
        self._host = host
        self._record = record
        self._replaced = host.ownership.image_state.is_replaced  # before anything is written
        self._request = _request(host, record.mirror)
        self._tls = client_tls(self._request.tls, self._request.address.host)
        self._asking: Deferred[None] | None = None
        self._began = shell.reactor.seconds()
        self._state = SourceState.CONFIRMING
        self._given_up = False

    @property
    def hosts(self) -> list[Host]:
        """The one image."""
        return [self._host]

    @property
    def ports(self) -> list[ListeningPort]:
        """No ports: no client is admitted."""
        return []

    def open(self) -> Deferred[None]:
        """Open nothing."""
        return succeed(None)

    def opened(self) -> None:
        """Ask the destination."""
        self._began = self._shell.reactor.seconds()
        self._asking = Deferred.fromCoroutine(self._settle())
        self._asking.addCallbacks(self._settled, self._unsettled)

    def describe(self) -> str:
        """Return a description of the current work."""
        return f"asking {self._record.other_side} to confirm a handover"

    async def _settle(self) -> None:
        reactor = self._shell.reactor
        proposal = Proposal(settling(self._record, self._host.full_name))
        try:
            client = await dial(reactor, self._request, proposal, HELLO_SECONDS, self._tls)
        except SessionDeclined as error:
            raise proposal.declined(error) from error
        try:
            if client.session is None:
                raise NotConfirmed("the server that listens there now doesn't support sessions")
            await confirm(reactor, client, self._host.ownership)
            self._state = SourceState.FINISHING
            await finish(reactor, self._terms(), client, log)
        finally:
            client.leave(ConnectionGone("the handover was asked about"))

    def _terms(self) -> HandoverTerms:
        host = self._host
        action = Action.UNLINK if self._record.unlink else Action.EXIT
        if action is Action.UNLINK and self._replaced:
            log.warn("{path} is another file by now: it is kept", path=host.storage.path)
            action = Action.EXIT
        return HandoverTerms(host.storage, host.ownership, action)

    def _settled(self, _: None) -> None:
        self._shell.lifetime.end(
            0, f"{self._host.storage.path} is at {self._record.other_side}, which has confirmed it"
        )

    def _unsettled(self, failure: Failure) -> None:
        if self._given_up:
            return  # the reason is logged where it was told to end
        if not failure.check(FlexmigrateError, OSError):
            log.failure("unexpected error", failure)
        path = self._host.storage.path
        self._shell.lifetime.end(
            1,
            f"{path} was handed over to {self._record.other_side} ({self._record.time}), which has "
            f"not confirmed it: {failure.getErrorMessage()}. It is not served here. Start the "
            f"destination's server again and repeat this; or see 'flexmigrate whose {path}' at "
            "both ends, then 'flexmigrate release' here or 'flexmigrate take'",
        )

    # The end

    def terminate(self, reason: str) -> Deferred[int]:
        """Stop asking, and fire with the exit status: an answer that has come already is still
        acted upon.
        """
        if self._asking is None:
            return succeed(1)
        ended: Deferred[int] = Deferred()
        self._asking.addCallback(lambda _: ended.callback(self._status))
        if self._state is SourceState.CONFIRMING:
            self._given_up = True
            self._asking.cancel()
        return ended

    @property
    def _status(self) -> int:
        return 1 if self._shell.lifetime.status is None else self._shell.lifetime.status

    def closing(self) -> list[Step]:
        """Return no steps: nobody is connected."""
        return []

    def concluded(self) -> Deferred[None]:
        """Fire at once: nothing is left to do."""
        return succeed(None)

    # The views of it, and the commands to it

    def view(self) -> ServerView:
        """Return the view for HTTP."""
        shell = self._shell
        meter = shell.factories.meter
        view = export_view(self._host.export, 0, meter, self.status(None), Tally(), None)
        return server_view([view], (), shell.pool)

    def status(self, export: str | None) -> Status:
        """Return the status of an image whose destination has to confirm that it owns it."""
        name = self._host.export.name
        if export is not None and export != name:
            raise CommandError(f"there is no export {export!r}; there is {name!r}")
        return settling_status(
            self._host.export,
            self._host.ownership.image_state,
            self._state,
            self._shell.reactor.seconds() - self._began,
        )

    def find(self, export: str | None) -> NoReturn:
        """Refuse: nothing here can be migrated.

        :raises CommandError: always.
        """
        self._refuse()

    def set_acl(self, acl: AccessList) -> NoReturn:
        """Refuse: no client is admitted anyway."""
        self._refuse()

    def mirror(self, request: MirrorRequest) -> NoReturn:
        """Refuse: the image has been handed over already."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise CommandError(
            f"{self._host.storage.path} was handed over to {self._record.other_side}, which is "
            "asked to confirm it"
        )


def _request(host: ImageHost, lines: tuple[str, ...]) -> MirrorRequest:
    try:
        return parse_mirror(list(lines[1:]))
    except FlexmigrateError as error:
        raise ImageError(
            f"{host.storage.path}: its journal doesn't say how its destination is reached: {error}"
        ) from error
