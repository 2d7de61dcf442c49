"""One export that can be migrated: the operator's commands about it, and the actions at
a migration's end.

It keeps the export's migration lock, and provides the environment of a migration's source.
``front`` opens the addresses, and ends the process.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from flexmigrate import __version__
from flexmigrate.client import NBDClientProtocol
from flexmigrate.control.grammar import mirror_command
from flexmigrate.errors import (
    Broken,
    CommandError,
    ConnectFailed,
    MigrationError,
    NoHello,
    Rejected,
    RemoteProtocolError,
    UsageError,
)
from flexmigrate.migration.lock import OwnedLock
from flexmigrate.migration.request import Action, ConvergeChange, MirrorRequest
from flexmigrate.migration.source.convergence import Convergence
from flexmigrate.migration.source.ending import Ending
from flexmigrate.migration.source.environment import SizeMismatch, Timeouts
from flexmigrate.migration.source.handover import HandoverTerms, was_cut
from flexmigrate.migration.source.machine import Core, Source, SourceMachine
from flexmigrate.migration.source.progress import Progress
from flexmigrate.migration.source.proposal import Declined, Proposal
from flexmigrate.migration.source.rate import RateLimit
from flexmigrate.net.address import Address
from flexmigrate.service.dialling import client_tls, dial
from flexmigrate.service.host import Host
from flexmigrate.service.report_file import Keeper, check_report
from flexmigrate.service.watch import Look, Watch
from flexmigrate.telemetry.history import Summary, Tally, Verdict
from flexmigrate.telemetry.report.subject import Subject
from flexmigrate.telemetry.units import count_text

log = Logger()


REQUEST_LIMIT_VARIABLE = "FLEXNBD_MS_REQUEST_LIMIT_SECS"

# flexnbd's answers to a mirror command that could not begin; behind each the cause is told.
_ANSWERS: tuple[tuple[type[Exception], str], ...] = (
    (ConnectFailed, "Mirror failed to connect"),
    (NoHello, "Remote server failed to respond"),
    (Rejected, "Mirror was rejected"),
    (Declined, "Mirror was rejected"),
    (RemoteProtocolError, "Mirror was rejected"),
    (SizeMismatch, "Remote size does not match local size"),
)


def timeouts() -> Timeouts:
    """Return a migration's timeouts; an environment variable may set that of a request.

    A variable that isn't a number of seconds above 0 is logged, and has no effect.
    """
    text = os.environ.get(REQUEST_LIMIT_VARIABLE)
    if text is None:
        return Timeouts()
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        log.warn("{name}={text!r} is ignored", name=REQUEST_LIMIT_VARIABLE, text=text)
        return Timeouts()
    return Timeouts(request_seconds=seconds)


class Front(Protocol):
    """The server in front of the export."""

    @property
    def hosts(self) -> Iterable[Host]:
        """The images that it serves, this one among them."""

    @property
    def instance(self) -> bytes:
        """Return the random id of this server."""

    def withdraw(self, host: Host) -> Deferred[None]:
        """Close the export for new clients; if it is the only one, close the addresses."""

    def restore(self, host: Host) -> Deferred[None]:
        """Undo `withdraw`."""

    def is_own_connection(self, transport: Any, address: Address) -> bool:
        """Return whether *transport* is connected to this very server, at *address*."""

    def dismiss(self, host: Host) -> None:
        """Disconnect the export's clients: the image is, or soon will be, elsewhere."""

    def given(self, host: Host, status: int, reason: str) -> None:
        """Give up an export that is not ours any more, or may not be: disconnect its clients.

        :param status: what this means for the process's exit status.
        """


class OwnDestination(MigrationError):
    """A server was told to migrate to itself."""


class _Environment:
    """The environment for one migration: see ``migration.attempt.MigrationEnvironment``."""

    def __init__(self, migrating: MigratingExport, reactor: Any, request: MirrorRequest) -> None:
        self._migrating = migrating
        self._reactor = reactor
        self._request = request
        self._tls = client_tls(request.tls, request.address.host)
        self.lock = migrating.lock

    def dial(self, hello_seconds: float, proposal: Proposal | None) -> Deferred[NBDClientProtocol]:
        dialled = dial(self._reactor, self._request, proposal, hello_seconds, self._tls)
        return dialled.addCallback(self._not_ourselves)

    def _not_ourselves(self, client: NBDClientProtocol) -> NBDClientProtocol:
        """Refuse to migrate to ourselves: data that is sent late would undo clients' writes."""
        if self._migrating.front.is_own_connection(client.transport, self._request.address):
            error = OwnDestination("the destination is this server itself")
            client.leave(error)
            raise error
        return client

    def stop_listening(self) -> Deferred[None]:
        return self._migrating.front.withdraw(self._migrating.host)

    def resume_listening(self) -> Deferred[None]:
        return self._migrating.front.restore(self._migrating.host)

    def dismiss(self) -> None:
        self._migrating.front.dismiss(self._migrating.host)


class MigratingExport:
    """The export; see the module.

    :ivar lock: the migration lock.
    :ivar migration: the migration that runs, or ran last.
    :ivar watch: its observers and its history.
    """

    def __init__(
        self, reactor: Any, host: Host, front: Front, lock: OwnedLock | None = None
    ) -> None:
        self._reactor = reactor
        self._source: Source | None = None
        self._terminating = False
        self.host = host
        host.keeps_size = lambda: self.is_mirroring or self.given_away
        self.front = front
        self.lock = lock or OwnedLock()
        self.migration: Core | None = None
        self.watch: Watch | None = None
        self.last_migration: str | None = None
        self.given_away = False
        self._ended = Tally()

    @property
    def owns(self) -> bool:
        """Whether the image is ours; not any more once its handover is committed."""
        if self.given_away:
            return False
        if self.host.ownership.is_recorded:
            return self.host.ownership.image_state.is_owned(serving=True)
        # Nothing is recorded before the first act that can't be taken back.
        return self.migration is None or not self.migration.state.may_be_given

    @property
    def is_mirroring(self) -> bool:
        """Whether a migration is running."""
        return self._source is not None

    # The operator's commands

    def mirror(self, request: MirrorRequest, look: Look | None = None) -> Deferred[str]:
        """Start a migration; see ``control.server.Operator``.

        :param look: called with each sample.
        """
        return Deferred.fromCoroutine(self._mirror(request, look))

    async def _mirror(self, request: MirrorRequest, look: Look | None) -> str:
        if request.report is not None:
            kept = (each.storage.identity for each in self.front.hosts)
            images = {identity for identity in kept if identity is not None}
            await self.host.storage.run(check_report, request.report, images)
        command = object()  # the owner of the lock
        await self.lock.acquire(command)
        try:
            core = self._begin(request, look)
        finally:
            self.lock.release(command)
        try:
            await core.started
        except Exception as error:
            raise CommandError(self._answer(error)) from error
        warning = core.current.warning
        return "Mirror started" if warning is None else f"Mirror started: {warning}"

    def _begin(self, request: MirrorRequest, look: Look | None) -> Core:
        """Check that a migration may start, and start it; the caller holds the migration lock."""
        if self._terminating:
            raise CommandError("shutting down")
        if self._source is not None:
            raise CommandError("mirror already running")
        if self.given_away:
            raise CommandError("the image was migrated away")
        self.host.look_at_size()  # for the last time: a migration has one size
        if self.host.storage.cut is not None:
            raise CommandError(was_cut(self.host.storage.cut))
        if not self.host.export.size:
            raise CommandError("the image is empty: there is nothing to migrate")
        if request.action is Action.UNLINK:
            self._check_unlink()
        try:
            environment = _Environment(self, self._reactor, request)
        except UsageError as error:
            raise CommandError(str(error)) from error
        now, limit = self._reactor.seconds(), RateLimit(request.max_bps)
        core = Core(
            reactor=self._reactor,
            export=self.host.export,
            environment=environment,
            terms=HandoverTerms(
                self.host.storage,
                self.host.ownership,
                request.action,
                request.handover,
                tuple(mirror_command(request)),
                self.host.full_name,
                str(request.address),
                verify=request.verify,
                instance=self.front.instance,
                read_only=self.host.export.read_only,
                old_peers=request.allow_old_peers,
            ),
            timeouts=replace(
                timeouts(),
                connections=request.connections,
                retry_seconds=request.retry_interval,
                drop_cache=request.drop_cache,
            ),
            limit=limit,
            convergence=Convergence(request.converge, limit, now),
            began=now,
            progress=Progress(now),
        )
        core.logger.info(
            "migration to {address} begins, then {action}",
            address=request.address,
            action=request.action.value,
        )
        self.migration = core
        self.watch = Watch(self._reactor, core, str(request.address), self._keeper(request), look)
        self.watch.start()
        self._source = SourceMachine(core)
        core.started.addErrback(self._not_started)
        core.finished.addCallback(self._finished)
        self._source.start()
        return core

    def _keeper(self, request: MirrorRequest) -> Keeper | None:
        if request.report is None:
            return None
        subject = Subject(
            version=__version__,
            image=self.host.storage.real_path,
            export=self.host.export.name,
            size=self.host.export.size,
            action=request.action.value,
            began=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        return Keeper(request.report, subject)

    def _check_unlink(self) -> None:
        """Refuse an action that can't be carried out, or would lose something."""
        storage = self.host.storage
        if not storage.is_unlinkable:
            raise CommandError(f"{storage.path} is a device and can't be unlinked")
        if self.host.export.read_only:
            raise CommandError(f"{storage.path} is served read-only: not unlinked")
        if storage.other_names:
            log.warn(
                "{path} has other names, too ({number}, hard links): it will be removed, and they "
                "keep its bytes, which are not the image any more then, and are not served",
                path=storage.path,
                number=storage.other_names,
            )

    def _not_started(self, failure: Failure) -> Failure:
        self._source = None
        self.last_migration = f"failed: {failure.getErrorMessage()}"
        assert self.migration is not None
        verdict: Verdict = "broken" if failure.check(Broken) else "failed"
        self._watch_ended(verdict, failure.getErrorMessage())
        self.migration.logger.error(
            "the migration did not begin: {error}", error=failure.getErrorMessage()
        )
        self._watched.conclude()
        return failure

    @staticmethod
    def _answer(error: Exception) -> str:
        for kind, text in _ANSWERS:
            if isinstance(error, kind):
                return f"{text}: {error}"
        return str(error)

    def set_max_bps(self, limit: int) -> str:
        """See ``control.server.Operator``; *limit* in bytes a second, 0 for none."""
        if self._source is None or self.migration is None:
            raise CommandError("Not mirroring")
        self.migration.limit.bytes_per_second = limit
        self.migration.hurry()
        return "updated"

    def set_converge(self, change: ConvergeChange) -> str:
        """See ``control.server.Operator``."""
        if self._source is None or self.migration is None:
            raise CommandError("Not mirroring")
        self.migration.change(change)
        return "updated"

    def break_mirror(self) -> str:
        """See ``control.server.Operator``."""
        if self._source is None:
            raise CommandError("Not mirroring")
        self._source.cancel("broken off by the operator")
        if self.is_mirroring:
            raise CommandError("too late: the image is being handed over")
        return "mirror stopped"

    def wait(self) -> Deferred[Summary]:
        """See ``control.server.Operator``."""
        if self.watch is None:
            raise CommandError("Not mirroring")
        return self.watch.wait()

    # The end of a migration

    def concluded(self) -> Deferred[None]:
        """Fire once all work of the last migration is finished, such as its report."""
        if self.watch is None or self.watch.summary is None:
            return succeed(None)
        return self.watch.wait().addCallback(lambda _: None)

    @property
    def _watched(self) -> Watch:
        assert self.watch is not None
        return self.watch

    def _finished(self, ending: Ending) -> None:
        self._source = None
        self.given_away = ending.gave_away
        self.last_migration = ending.reason or ending.verdict
        summary = self._watch_ended(ending.verdict, ending.reason)
        if ending.reason is None:
            self._log_summary(summary)
        else:
            self._log_failure(ending)
        if ending.gave_away:
            is_confirmed = ending.reason is None
            self.front.given(
                self.host,
                0 if is_confirmed else 1,
                "the image was migrated away" if is_confirmed else "the handover was not confirmed",
            )
        self._watched.conclude()

    def _log_failure(self, ending: Ending) -> None:
        assert self.migration is not None
        if ending.gave_away:
            self.migration.logger.error("{error}", error=ending.reason)
        else:
            self.migration.logger.warn("the migration ended: {error}", error=ending.reason)

    def _watch_ended(self, verdict: Verdict, reason: str | None = None) -> Summary:
        summary = self._watched.ended(verdict, reason)
        self._ended = self._ended.after(summary)
        return summary

    def tally(self, now: float) -> Tally:
        """Return the totals of all migrations until *now*, the reactor's time in seconds."""
        core, watch = self.migration, self.watch
        if core is None or watch is None or watch.summary is not None:
            return self._ended
        return self._ended.with_running(
            core.progress.sent, core.attempts, watch.parked_seconds(now)
        )

    def _log_summary(self, summary: Summary) -> None:
        assert self.migration is not None
        self.migration.logger.info(
            "migration {result}: {sent} bytes in {passes_text}, {seconds:.2f} s, "
            "{rate:.0f} MiB/s; clients were parked for {parked:.3f} s; {attempts_text}",
            result=summary.verdict,
            sent=summary.bytes_sent,
            passes=summary.passes,
            passes_text=count_text(summary.passes, "pass", "passes"),
            seconds=summary.duration,
            rate=summary.speed / 2**20,
            parked=summary.parked,
            attempts=summary.attempts,
            attempts_text=count_text(summary.attempts, "attempt"),
        )
        self.migration.logger.info(
            "verified: {verified}, {compared} bytes were compared and equal, {digest}",
            verified=summary.verified or "off",
            compared=summary.bytes_compared or 0,
            digest=summary.digest or "not all of it",
        )
        if summary.flush_failed is not None:
            self.migration.logger.warn(
                "a flush of the source's image had failed ({failure}): what was sent is what "
                "clients read, which its disk may not have",
                failure=summary.flush_failed,
            )

    # The end of the process

    def terminate(self, reason: str) -> Deferred[int]:
        """Start no more migrations, end a running one, and fire with the exit status."""
        self._terminating = True
        return Deferred.fromCoroutine(self._terminate(reason))

    async def _terminate(self, reason: str) -> int:
        source = self._source
        if source is None:
            return 0
        source.cancel(reason)
        if not self.is_mirroring:
            return 1
        # The handover has begun, and holds the lock: its result decides.
        await self.lock.acquire(self)
        self.lock.release(self)
        source.cancel(reason)  # it may have come to nothing
        if self.is_mirroring:
            # It is committed, and the destination doesn't answer; or has just done so.
            source.leave(reason)
            await self._watched.wait()
        return 0 if self.last_migration == "complete" else 1
