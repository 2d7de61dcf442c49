"""``serve`` of an image that was committed to a destination: it isn't served, but its handover is
settled, if the destination can be reached.

Meanwhile the operator's socket and the metrics are where they would be: whoever looks sees that the
image isn't owned, and what is being done. A place that can't be opened is only told of, since
nothing that has to be settled depends on it.
"""

from __future__ import annotations

from typing import Any, NoReturn

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from flexmigrate.config import ServeConfig
from flexmigrate.control.grammar import parse_mirror
from flexmigrate.control.server import ControlPort, listen_control
from flexmigrate.errors import (
    CommandError,
    ConnectionGone,
    FlexmigrateError,
    ImageError,
    SessionDeclined,
)
from flexmigrate.migration.request import Action, ConvergeChange, MirrorRequest
from flexmigrate.migration.source.handover import Gift, NotConfirmed, confirm, finish, settling
from flexmigrate.migration.source.proposal import Proposal
from flexmigrate.server.measuring import Meter
from flexmigrate.service.closing import answer_operators, close_control, take_all
from flexmigrate.service.dialling import client_tls, dial
from flexmigrate.service.host import ImageHost
from flexmigrate.service.lifetime import Lifetime
from flexmigrate.service.port import ListeningPort
from flexmigrate.service.publishing import Publishing, server_view
from flexmigrate.service.reporting import SettlingPhase, settling_status
from flexmigrate.telemetry.history import Summary, Tally
from flexmigrate.telemetry.status import Status
from flexmigrate.web.view import ExportView, ServerView

log = Logger()

HELLO_SECONDS = 5.0
"""For the destination to agree to the session, once it is connected to."""


class SettleService(Service):
    """Asks the destination once; the process ends with 0 if it says that it owns the image.

    :param host: the image, whose journal says that it is committed by a session.
    :param config: of the server that isn't started: where it is looked at, and commanded.
    :raises ImageError: the journal doesn't say how the destination is reached.
    :raises UsageError: the certificates that it names can't be used.
    """

    def __init__(
        self, reactor: Any, host: ImageHost, config: ServeConfig, lifetime: Lifetime, pool: Any
    ) -> None:
        record = host.ownership.record
        assert record is not None, "it is committed"
        self._reactor = reactor
        self._host = host
        self._config = config
        self._lifetime = lifetime
        self._pool = pool
        self._record = record
        self._replaced = host.ownership.standing.is_replaced  # before anything is written
        self._request = _request(host, record.mirror)
        self._tls = client_tls(self._request.tls, self._request.address.host)
        self._publishing = Publishing(reactor, config.metrics, config.web, self._look)
        self._meter = Meter()
        self._control: ControlPort | None = None
        self._asking: Deferred[None] | None = None
        self._began = 0.0
        self._phase: SettlingPhase = "committing"
        self._given_up = False

    def startService(self) -> None:
        """Begin to ask."""
        super().startService()  # type: ignore[no-untyped-call]  # Twisted's
        self._pool.start()
        self._lifetime.heed_signals(self.terminate)  # there is nothing to reload
        self._be_seen()
        # Whoever waits for a server to be ready shouldn't take what comes for its failure to begin.
        self._lifetime.ready(
            lambda: f"asking {self._record.other_side} to confirm a handover", serving=False
        )
        self._began = self._reactor.seconds()
        self._asking = Deferred.fromCoroutine(self._settle())
        self._asking.addCallbacks(self._settled, self._unsettled)

    def _be_seen(self) -> None:
        try:
            if self._config.sock is not None:
                self._control = listen_control(self._reactor, self._config.sock, self)
        except FlexmigrateError as error:
            log.warn("{error}", error=error)
        self._publishing.open().addErrback(
            lambda failure: log.warn("no HTTP: {error}", error=failure.getErrorMessage())
        )

    async def _settle(self) -> None:
        proposal = Proposal(settling(self._record, self._host.full_name))
        try:
            client = await dial(self._reactor, self._request, proposal, HELLO_SECONDS, self._tls)
        except SessionDeclined as error:
            raise proposal.declined(error) from error
        try:
            if client.session is None:
                raise NotConfirmed("whoever listens there now knows no sessions")
            await confirm(self._reactor, client, self._host.ownership)
            self._phase = "given"
            await finish(self._reactor, self._gift(), client, log)
        finally:
            client.leave(ConnectionGone("the handover was asked about"))

    def _gift(self) -> Gift:
        host = self._host
        action = Action.UNLINK if self._record.unlink else Action.EXIT
        if action is Action.UNLINK and self._replaced:
            log.warn("{path} is another file by now: it is kept", path=host.image.path)
            action = Action.EXIT
        return Gift(host.image, host.background, host.ownership, action)

    def _settled(self, _: None) -> None:
        self._lifetime.end(
            0, f"{self._host.image.path} is at {self._record.other_side}, which has confirmed it"
        )

    def _unsettled(self, failure: Failure) -> None:
        if self._given_up:
            return  # whoever told it to end says how
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

    # The end

    def terminate(self, reason: str) -> Deferred[int]:
        """Stop asking, and fire with the exit status: what was answered already is brought to its
        end, and is the truth.
        """
        if self._asking is None:
            return succeed(1)
        ended: Deferred[int] = Deferred()
        self._asking.addCallback(lambda _: ended.callback(self._status))
        if self._phase != "given":
            self._given_up = True
            self._asking.cancel()
        return ended

    @property
    def _status(self) -> int:
        return 1 if self._lifetime.status is None else self._lifetime.status

    def stopService(self) -> Deferred[None]:
        """Let go of the image."""
        super().stopService()  # type: ignore[no-untyped-call]  # Twisted's
        return Deferred.fromCoroutine(
            take_all(
                self._lifetime,
                lambda: close_control(self._control),
                lambda: self._publishing.close(self._lifetime.status, self._lifetime.reason),
                self._host.close,
                lambda: answer_operators(self._control),
                self._publishing.finish,
                self._pool.stop,
            )
        )

    # What is seen of it

    @property
    def ports(self) -> list[ListeningPort]:
        """No client is let in."""
        return []

    def find(self, export: str | None) -> NoReturn:
        """Nothing here can be sent away."""
        self._refuse()

    def _look(self) -> ServerView:
        name = self._host.export.name
        status, background = self.status(None), self._host.background
        view = ExportView(name, status, 0, background.pending, self._meter.of(name), Tally())
        return server_view([view], (), self._pool)

    # What the operator's socket commands: control.server.Operator

    def status(self, export: str | None) -> Status:
        """Return what is told about an image that is the destination's, which has to say so."""
        name = self._host.export.name
        if export is not None and export != name:
            raise CommandError(f"there is no export {export!r}; there is {name!r}")
        return settling_status(
            self._host.export,
            self._host.ownership.standing,
            self._phase,
            self._reactor.seconds() - self._began,
        )

    def set_acl(self, entries: list[str]) -> NoReturn:
        """There is nobody whom a list could let in."""
        self._refuse()

    def mirror(self, request: MirrorRequest) -> NoReturn:
        """The image is given away already."""
        self._refuse()

    def wait(self, export: str | None) -> Deferred[Summary]:
        """Nobody here has seen the migration."""
        self._refuse()

    def set_max_bps(self, n: int, export: str | None) -> NoReturn:
        """Nothing is sent any more."""
        self._refuse()

    def set_converge(self, change: ConvergeChange, export: str | None) -> NoReturn:
        """Nothing is to converge any more."""
        self._refuse()

    def break_mirror(self, export: str | None) -> NoReturn:
        """It is too late for that."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise CommandError(
            f"{self._host.image.path} was handed over to {self._record.other_side}, which is asked "
            "to confirm it"
        )


def _request(host: ImageHost, lines: tuple[str, ...]) -> MirrorRequest:
    try:
        return parse_mirror(list(lines[1:]))
    except FlexmigrateError as error:
        raise ImageError(
            f"{host.image.path}: its journal doesn't say how its destination is reached: {error}"
        ) from error
