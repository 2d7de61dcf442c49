"""One connection from source to destination: its steps, each a coroutine that the source's state
machine runs.

A step doesn't know what comes after it. Before it does something to the server, it registers how
that is undone. ``abandon`` undoes everything, the last first, at any point before the handover is
settled: clients go on, and nothing of the attempt remains.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from flexmigrate.errors import MigrationError
from flexmigrate.log import failures
from flexmigrate.migration.source.connection import DestinationConnection
from flexmigrate.migration.source.convergence import Convergence
from flexmigrate.migration.source.environment import (
    MigrationEnvironment,
    SizeMismatch,
    Timeouts,
)
from flexmigrate.migration.source.handover import (
    HandoverTerms,
    NotConfirmed,
    SourceHandover,
    confirm,
    settling,
)
from flexmigrate.migration.source.parking import Parking
from flexmigrate.migration.source.passes import Passes
from flexmigrate.migration.source.progress import Progress
from flexmigrate.migration.source.proposal import MigrationProposal, Proposal
from flexmigrate.migration.source.rate import RateLimit
from flexmigrate.migration.source.switchover import Switchover
from flexmigrate.server.export import Export
from flexmigrate.wire.constants import TransmissionFlag


class Attempt:
    """See the module.

    :param terms: what is given, and how.
    :param number: of the attempt, from 1.
    :param about: the migration, for logs.
    :ivar passes: what was sent, and is left.
    :ivar warning: what the operator should know of the handover, or of what is overwritten; None:
        it is by a session, to a server that waits for it.
    """

    def __init__(
        self,
        reactor: Any,
        export: Export,
        environment: MigrationEnvironment,
        timeouts: Timeouts,
        limit: RateLimit,
        convergence: Convergence,
        progress: Progress,
        terms: HandoverTerms,
        number: int,
        about: object = None,
    ) -> None:
        self._reactor = reactor
        self._export = export
        self._environment = environment
        self._drop_cache = timeouts.drop_cache
        self._terms = terms
        self._number = number
        self._log = Logger(source=about)
        self._handover: SourceHandover | None = None
        self.passes = Passes(reactor, export, terms.verify, limit, convergence, progress, about)
        self._connection = DestinationConnection(
            reactor, environment, timeouts, self.passes.count_dirtied, about
        )
        self._switchover = Switchover(reactor, export, terms, convergence, self.passes, about)
        self._parking = Parking(reactor, convergence)
        # What has to be undone if the image stays here; the last of it first.
        self._undo = ExitStack()
        self.warning: str | None = None

    @property
    def has_parked(self) -> bool:
        """Whether clients were parked in it, or are."""
        return self._parking.has_begun

    @property
    def obstacle(self) -> str | None:
        """Return why clients aren't parked though little enough is left, in words; None:
        nothing is in the way, as far as is known.
        """
        return self._switchover.obstacle

    @property
    def destination(self) -> str:
        """Return the destination as it calls itself, host and path, if it does; and its address."""
        address, answer = self._terms.address, self._connection.answer
        return address if answer is None else f"{answer.name} ({address})"

    @property
    def handover_kind(self) -> str | None:
        """The kind of handover, "session" or "plain"; None before that is known."""
        if self._handover is None:
            return None
        return "session" if self._handover.is_session else "plain"

    def hurry(self) -> None:
        """Look at once whether something is in the way of the handover still."""
        self._switchover.hurry()

    # The steps, in their order

    async def dial(self) -> None:
        """Connect, and see that the destination's export is as large as the image, and can be
        written to.
        """
        await self._terms.check_name()
        self._terms.check_size()
        await self._terms.check_readers()
        session = await self._terms.wants_session()
        proposal = MigrationProposal(self._terms, self._number, session=session)
        self.passes.earlier = proposal.opening.named
        client = await self._connection.dial(proposal)
        overwrites = proposal.check(client)
        if client.size != self._export.size:
            raise SizeMismatch(client.size, self._export.size)
        if client.flags & TransmissionFlag.READ_ONLY:
            raise MigrationError("the destination's export is read-only")
        self._connection.start_transfer()
        client.when_closed().addCallback(lambda _: self.hurry())
        handover = SourceHandover(
            self._reactor, self._terms, self._number, client, self._log.source
        )
        await handover.begin()
        self._handover = handover
        warnings = filter(None, (overwrites, self._terms.warning(session, handover.is_session)))
        self.warning = "; ".join(warnings) or None
        if self.warning is not None:
            self._log.warn("{warning}", warning=self.warning)
        if self._terms.may_be_session:
            self._log.info("handover: {kind}", kind=self.handover_kind)

    async def copy(self) -> None:
        """The first pass: everything, once; but for what an earlier attempt has left there, and
        is the same.
        """
        answer = self._connection.answer if self._handing_over.is_session else None
        self._undo.callback(self.passes.stop_marking)
        await self.passes.send_all(self._connection, answer, drop_cache=self._drop_cache)

    async def converge(self) -> None:
        """Further passes, until clients may be parked for what is left, and nothing is known to be
        in the way of the handover.
        """
        await self._switchover.reach(self._handing_over)

    async def finish(self) -> None:
        """Park the clients, and send and flush the rest: both images are equal then."""
        self._terms.check_size()
        await self._terms.check_readers()
        left = self.passes.left
        self._log.info(
            "clients are parked for {left} bytes, which should take {seconds:.3f} s",
            left=left,
            seconds=self._parking.expected(left),
        )
        self._parking.begin()
        await self._parking.within(self._send_rest())

    async def _send_rest(self) -> None:
        self._undo.callback(self._export.unpark)
        self._parking.waits_for = "requests of clients were under way still"
        await self._export.park()
        self._parking.waits_for = "the rest was not sent, flushed and compared yet"
        await self.passes.send_rest(self._parking.flushed)
        self._connection.bundle.dismiss_others()

    async def settle(self) -> None:
        """Free the address, under the migration lock, and have the destination prepare."""
        await self._parking.within(self._make_way())

    async def _make_way(self) -> None:
        await self._terms.check_name()
        self._parking.waits_for = "the serving address was not free yet"
        await self._environment.lock.acquire(self)
        self._undo.callback(self._listen_again)
        await self._environment.stop_listening()
        self._parking.waits_for = "the destination had not said that it is prepared"
        if self._handing_over.is_session:
            await self._handing_over.prepare(self.passes.digest)

    async def commit(self) -> bool:
        """Take the step that can't be taken back; see :class:`SourceHandover`."""
        return await self._handing_over.commit(self.passes.digest or "")

    async def confirm(self) -> None:
        """Tell the destination that the image is its own, until it answers, on this connection or,
        once that has failed, on another one.

        :raises FlexmigrateError: it has to be told again.
        """
        if self._connection.client is not None:
            return await self._handing_over.confirm()
        record = self._terms.ownership.record
        assert record is not None, "it is committed"
        client = await self._connection.dial(Proposal(settling(record, self._terms.name)))
        if client.session is None:
            self._connection.let_go("it doesn't support sessions")
            raise NotConfirmed("the server that listens there now doesn't support sessions")
        return await confirm(self._reactor, client, self._terms.ownership)

    def let_go(self, reason: str) -> None:
        """The destination was not heard of: it may own the image, so clients had better look there.
        Nothing that is still to be done here needs the lock.
        """
        self._connection.let_go(reason)
        self._environment.dismiss()
        self._free_lock()

    async def finish_giving(self) -> None:
        """The image is the destination's: let the clients go there, and clean up."""
        self._environment.dismiss()
        # Their connections end in the reactor's next turn: before that nothing else keeps it busy.
        await deferLater(self._reactor, 0)
        await self._handing_over.finish(self._connection.client)

    # Its end

    def close(self) -> None:
        """The image is given away, or may be: free the lock. Clients stay parked."""
        self._undo.pop_all()
        self._hang_up("the migration is over")
        self._free_lock()

    def abandon(self, reason: str) -> None:
        """The image stays here: clients go on, as if nothing had happened."""
        try:
            self._hang_up(reason)
        finally:
            try:
                self._undo.close()
            finally:
                self._free_lock()  # last: who waits for it finds everything as it is to stay

    def _hang_up(self, reason: str) -> None:
        self._parking.end()
        self._connection.hang_up(reason)

    def _listen_again(self) -> None:
        # What goes wrong there must not keep those waiting who are connected.
        maybeDeferred(self._environment.resume_listening).addErrback(
            lambda failure: failures.tell(self._log, "listening again failed", failure)
        )

    def _free_lock(self) -> None:
        if self._environment.lock.owner is self:
            self._environment.lock.release(self)

    @property
    def _handing_over(self) -> SourceHandover:
        assert self._handover is not None
        return self._handover
