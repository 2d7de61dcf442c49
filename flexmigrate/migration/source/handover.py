"""The handover at the source: the image is given away.

``ownership`` has the rules, and writes the records; the destination's part is
``destination.handover``. The source's steps, in their order, and the meaning of failures:

* *Session*, between two flexmigrates: PREPARE, until the destination has all, durably; then
  ``committed`` in the source's journal, from where no way leads back; then COMMIT, as often as it
  takes.
* *Plain*, towards any NBD server: with ``unlink`` the source's file is removed, then DISC. A
  destination owns the image only by a DISC at the end of a valid stream that covered all of it;
  then, and before it closes the connection, the image is flushed, its journal says ``owner``, and
  its marker is removed: the close tells the source. Between the source's last step and that close
  there is a gap that no further message would close; an error in it is :class:`HandoverUncertain`,
  and a matter for a human.

The state machines of both ends decide on the order of the steps.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.logger import Logger

from flexmigrate.client import NBDClientProtocol
from flexmigrate.errors import (
    ConnectionGone,
    FlexmigrateError,
    ImageError,
    ImageLost,
    MigrationError,
    RequestFailed,
    in_words,
)
from flexmigrate.image.storage import Storage
from flexmigrate.migration.ownership.journal import Record
from flexmigrate.migration.ownership.ownership import Ownership, UncertainError
from flexmigrate.migration.request import Action, HandoverRule, VerifyRule
from flexmigrate.wire.handover import (
    NO_ID,
    Answer,
    Capability,
    Digest,
    Opening,
    PrivateCommand,
    Property,
    Purpose,
    State,
    encode_image_digest,
    fit_text,
    parse_answer,
    parse_outcome,
)
from flexmigrate.wire.keys import KEY_LENGTH, NO_KEY, KeyKind, derive_key, key_digest

log = Logger()

# How long the source waits for the destination's answer to DISC: it syncs little, since all was
# flushed just before.
CLOSE_SECONDS = 30.0

COMMIT_SECONDS = 5.0
"""How long the source waits for the answer to COMMIT, before it asks again, elsewhere."""

FIRST_WITH_KEYS = 2
"""The version of messages from which on a peer knows of keys."""

GOODBYE_SECONDS = 5.0
"""How long it waits, with everything settled, for the destination to close the connection."""


class HandoverUncertain(MigrationError):
    """The last step was begun and not confirmed: both ends may believe that they own the image."""


class NotGiven(MigrationError):
    """The handover failed before anything that can't be taken back: the image is still the
    source's.
    """


class NotConfirmed(MigrationError):
    """The destination did not answer COMMIT, or not as it should: it has to be asked again."""


@dataclass
class HandoverTerms:
    """The terms of a handover: the same for all attempts of one migration.

    :ivar mirror: the lines of the mirror command, for the journal.
    :ivar verify: what is compared, where the destination can.
    :ivar name: the name of this side, for people.
    :ivar address: the address of the destination, for people.
    :ivar session: the session's id, drawn at random.
    :ivar secret: the secret from which the keys of attempts are derived; drawn at random.
    :ivar instance: a random id of this server.
    :ivar read_only: whether clients may not change the image.
    :ivar old_peers: whether a session may be had with a destination that knows of no keys.
    :ivar had_session: whether the session was agreed on in an attempt, perhaps an earlier one. From
        then on there is no other way: the destination may be prepared for it.
    """

    storage: Storage
    ownership: Ownership
    action: Action
    rule: HandoverRule = HandoverRule.AUTO
    mirror: tuple[str, ...] = ()
    name: str = ""
    address: str = ""
    session: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    had_session: bool = False
    verify: VerifyRule = VerifyRule.FULL
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(KEY_LENGTH))
    instance: bytes = NO_ID
    read_only: bool = False
    old_peers: bool = False

    def warning(self, wished: bool, agreed: bool) -> str | None:
        """Return what the operator should know of a handover that is a plain one; None of others.

        :param wished: whether a session was asked for.
        :param agreed: whether it was agreed on.
        """
        cause = "as was asked for"
        if wished:
            cause = f"{self.address} doesn't support sessions"
        elif self.rule is not HandoverRule.PLAIN or self.action is Action.NOTHING:
            return None
        if agreed:
            return None
        return (
            f"{cause}: handing over plainly, so a crash or a cut at the end may have to be settled "
            "by hand"
        )

    @property
    def may_be_session(self) -> bool:
        """Whether a session is wished for: nothing is handed over by a copy."""
        return self.rule is not HandoverRule.PLAIN and self.action is not Action.NOTHING

    def check_size(self) -> None:
        """See that the image has the size with which the migration began, and always had it.

        :raises MigrationError: it hasn't, and may be given it back.
        :raises ImageLost: it was shorter: what it had there is gone, whatever size it has now.
        """
        fault = self.storage.size_fault()
        if self.storage.cut is not None:
            raise ImageLost(f"at the source: {was_cut(self.storage.cut)}")
        if fault is not None:
            raise MigrationError(f"at the source: {fault}; a migration has one size")

    async def check_name(self) -> None:
        """See that the image's name leads to it still: whoever gives it away, and is asked for it
        later, has to find it by that.

        A copy may be sent of what has no name any more: nothing is given away by it, and it may be
        all that is left.

        :raises ImageLost: it doesn't.
        """
        if self.action is Action.NOTHING:
            return
        fault = await self.storage.name_fault()
        if fault is not None:
            raise ImageLost(f"{fault}; nothing is given away")

    async def check_readers(self) -> None:
        """See that nobody else reads the image, as a second server with ``--read-only`` does: that
        would go on to serve what isn't the image any more, and call it its own.

        :raises MigrationError: somebody does.
        """
        if self.action is Action.NOTHING:
            return
        others = await self.storage.other_readers()
        if others is not None:
            raise MigrationError(
                f"at the source: {others}: it would read on from what was given away; end that "
                "first"
            )

    async def wants_session(self) -> bool:
        """Return whether a session is to be asked for: not for what has no place for a journal.

        :raises MigrationError: there is one, and it can't be written; or there is none, and a
            session is insisted on.
        """
        if not self.may_be_session:
            return False
        try:
            await self.storage.run(self.ownership.probe)
        except OSError as error:
            if self.ownership.is_recorded:
                raise _no_journal(self.storage, error) from error
            if self.rule is HandoverRule.SESSION:
                raise MigrationError(
                    f"no journal can be kept of {self.storage.path}: {in_words(error)}"
                ) from error
            return False
        return True

    def opening(self, attempt: int, *, session: bool = True) -> Opening:
        """Return what is said to the destination at the beginning of *attempt*.

        :param session: whether a session is wished for.
        """
        if not session:
            return Opening(
                Purpose.PLAIN,
                NO_ID,
                attempt,
                State.NONE,
                self.storage.size,
                name=fit_text(self.name),
                instance=self.instance,
                properties=self._properties,
            )
        return Opening(
            Purpose.MIGRATE,
            self.session,
            attempt,
            State.SENDING,
            self.storage.size,
            name=fit_text(self.name),
            superseded=tuple(self.ownership.superseded_by(self.session)),
            digests=Digest.BLAKE3,
            capabilities=Capability.COMPARE,
            commit_digest=self._key_digest(KeyKind.COMMIT, attempt),
            retract_digest=self._key_digest(KeyKind.RETRACT, attempt),
            instance=self.instance,
            properties=self._properties,
        )

    @property
    def _properties(self) -> int:
        return Property.READ_ONLY if self.read_only else 0

    def _key_digest(self, kind: KeyKind, attempt: int) -> bytes:
        key = derive_key(self.secret, kind, self.session, attempt)
        return key_digest(key, kind, self.session, attempt)

    def retract_key(self, answer: Answer, attempt: int) -> bytes:
        """Return what shows that what the destination has was given up, so that *attempt* may
        replace it; NO_KEY where it wasn't given up here.

        :param answer: of the destination, which says what it has.
        """
        if answer.session == self.session:
            # Never of the attempt that runs: that may be committed yet.
            secret = self.secret if answer.attempt < attempt else NO_KEY
        else:
            secret = self.ownership.superseded_by(self.session).get(answer.session, NO_KEY)
        if secret == NO_KEY:
            return NO_KEY
        return derive_key(secret, KeyKind.RETRACT, answer.session, answer.attempt)


def _no_journal(storage: Storage, error: OSError) -> MigrationError:
    return MigrationError(
        f"can't write the journal of {storage.path} ({in_words(error)}), and without one nobody "
        "would know after a crash that it was given away: make its folder writable, or use "
        "'nothing' to send a copy and keep the image"
    )


def settling(record: Record, name: str) -> Opening:
    """Return what is said to the destination of a handover that *record* says is committed."""
    return Opening(
        Purpose.SETTLE,
        record.session,
        record.attempt,
        State.COMMITTED,
        record.size,
        name=fit_text(name),
        key=record.commit_key,
    )


class SourceHandover:
    """The steps of a handover at the source, in one attempt.

    :param about: the migration, for logs.
    :ivar is_session: whether a session was agreed on.
    """

    def __init__(
        self,
        reactor: Any,
        terms: HandoverTerms,
        attempt: int,
        client: NBDClientProtocol,
        about: object = None,
    ) -> None:
        self._reactor = reactor
        self._terms = terms
        self._attempt = attempt
        self._client = client
        self._log = Logger(source=about)
        self._keeps_journal = terms.action is not Action.NOTHING and terms.ownership.is_recorded
        # Without a record the destination was only asked (see `HandoverTerms.opening`).
        may_be = terms.may_be_session and terms.ownership.is_recorded
        self.is_session = may_be and client.session is not None

    async def begin(self) -> None:
        """Record that the image is being sent, before the first byte is.

        :raises MigrationError: a session was insisted on, or the journal can't be written.
        """
        terms = self._terms
        if terms.rule is HandoverRule.SESSION and not self.is_session:
            raise MigrationError(
                "the destination doesn't support sessions, and --handover says session"
            )
        if terms.had_session and not self.is_session:
            raise MigrationError("the destination supports no sessions any more")
        terms.had_session = self.is_session
        if not self._keeps_journal:
            return
        peer = ""
        if self._client.session is not None and self.is_session:
            peer = parse_answer(self._client.session).name
        record = Record(
            State.SENDING,
            session=terms.session,
            attempt=self._attempt,
            plain=not self.is_session,
            unlink=terms.action is Action.UNLINK,
            peer=peer,
            address=terms.address,
            mirror=terms.mirror,
            secret=terms.secret if self.is_session else NO_KEY,
        )
        try:
            await terms.storage.run(terms.ownership.send, record)
        except OSError as error:
            raise _no_journal(terms.storage, error) from error

    async def obstacle(self) -> str | None:
        """Return why the handover can't be recorded, before anybody waits for it; None: it can."""
        terms = self._terms
        if not self._keeps_journal:
            return None
        try:
            await terms.storage.run(terms.ownership.probe)
        except OSError as error:
            return f"the journal of {terms.storage.path} can't be written: {in_words(error)}"
        return None

    async def prepare(self, digest: str | None = None) -> None:
        """Have the destination see that it has all, and make that durable.

        :param digest: of the image, where all of it was compared: the destination's has to be the
            same, if it knows how to say so.
        :raises MigrationError: it hasn't all, or another digest, or couldn't.
        """
        command, payload = PrivateCommand.PREPARE, b""
        assert self._client.session is not None
        if digest and parse_answer(self._client.session).capabilities & Capability.COMPARE:
            command, payload = PrivateCommand.PREPARE_EQUAL, encode_image_digest(digest)
        try:
            outcome = parse_outcome(await self._client.private(command, payload=payload))
        except RequestFailed as error:
            raise MigrationError(f"the destination did not prepare: {error}") from error
        if outcome.refusal:
            raise MigrationError(f"the destination did not prepare: {outcome.refusal}")

    async def commit(self, digest: str = "") -> bool:
        """Take the step that can't be taken back; all is sent and flushed, and nobody is served.

        :param digest: of the image, as it was compared, for the journal.
        :return: whether the image is given away by that. If not, COMMIT is what is left to do.
        :raises NotGiven: nothing happened, surely.
        :raises ImageLost: the same, and another attempt would come to nothing, too.
        :raises HandoverUncertain: it was begun, and not confirmed.
        """
        if self._client.failure is not None:
            raise NotGiven(f"the destination is gone: {self._client.failure}")
        await self._terms.check_name()
        await self._record_commit(digest)
        if self.is_session:
            return False
        if self._terms.action is Action.UNLINK:
            await self._remove()
        silence = ConnectionGone(f"it did not close the connection within {CLOSE_SECONDS:g} s")
        timer = self._reactor.callLater(CLOSE_SECONDS, self._client.abort, silence)
        try:
            await self._client.disconnect()
        except FlexmigrateError as error:
            raise HandoverUncertain(self._describe(error)) from error
        finally:
            if timer.active():
                timer.cancel()
        return True

    async def _record_commit(self, digest: str) -> None:
        if not self._keeps_journal:
            return
        terms = self._terms
        try:
            await terms.storage.run(terms.ownership.commit, self._attempt, digest)
        except OSError as error:
            reason = f"can't write the journal of {terms.storage.path}: {in_words(error)}"
            raise NotGiven(reason) from error
        except UncertainError as error:
            raise HandoverUncertain(str(error)) from error

    async def _remove(self) -> None:
        storage = self._terms.storage
        try:
            await storage.unlink()
        except ImageError as error:
            await self._take_back(str(error))
        except OSError as error:
            if await storage.name_fault() is None:
                await self._take_back(f"{storage.path} can't be unlinked: {error}")
            # The name is gone, but would come back if the machine crashed at once.
            self._log.error("unlinking {path}: {error}", path=storage.path, error=error)

    async def _take_back(self, reason: str) -> None:
        if self._keeps_journal:
            try:
                await self._terms.storage.run(self._terms.ownership.take_back)
            except UncertainError as error:
                raise HandoverUncertain(f"{reason}; {error}") from error
        raise NotGiven(reason)

    def _describe(self, error: object) -> str:
        path = self._terms.storage.path
        fate = "was kept: use neither copy before the destination's marker was looked for"
        if self._terms.action is Action.UNLINK:
            fate = "was removed: the destination's copy is canonical"
        return (
            "the destination has all data, flushed, but did not confirm that it took over "
            f"({error}); {path} {fate}"
        )

    async def confirm(self) -> None:
        """Tell the destination that it owns the image, and hear that it knows."""
        await confirm(self._reactor, self._client, self._terms.ownership)

    async def finish(self, client: NBDClientProtocol | None) -> None:
        """Clean up after the image was given away: no failure here denies that.

        :param client: the connection over which the destination confirmed it.
        """
        if self._keeps_journal:
            of_session = client if self.is_session else None
            await finish(self._reactor, self._terms, of_session, self._log)


async def confirm(reactor: Any, client: NBDClientProtocol, ownership: Ownership) -> None:
    """Say COMMIT over *client*, with the key of what *ownership* says is committed.

    :raises NotConfirmed: it has to be said again, on another connection.
    """
    record, session = ownership.record, client.session
    assert record is not None
    assert session is not None
    # Who knows of no keys takes a payload for the next request.
    key = b"" if parse_answer(session).version < FIRST_WITH_KEYS else record.commit_key
    committing = client.private(PrivateCommand.COMMIT, payload=b"" if key == NO_KEY else key)
    answer = committing.addTimeout(COMMIT_SECONDS, reactor)
    try:
        outcome = parse_outcome(await answer)
    except DeferredTimeout:
        silent = f"the destination did not answer COMMIT within {COMMIT_SECONDS:g} s"
        raise NotConfirmed(silent) from None
    except FlexmigrateError as error:
        raise NotConfirmed(f"the destination did not answer COMMIT: {error}") from error
    if outcome.refusal:
        raise NotConfirmed(f"the destination refuses to commit: {outcome.refusal}")


def was_cut(fault: str) -> str:
    """Return why an image isn't migrated that was shorter once, in words.

    :param fault: as it was found then.
    """
    return (
        f"{fault}; what it had there is gone, though it may have its size again: look at it, and "
        "start its server again if it is to be migrated as it is"
    )


async def finish(
    reactor: Any, terms: HandoverTerms, client: NBDClientProtocol | None, logger: Logger
) -> None:
    """Record that the image is given away; if that was by a session, whose *client* it is, unlink
    it if that was asked for, and take leave.
    """
    try:
        await terms.storage.run(terms.ownership.done)
        if terms.action is Action.UNLINK:
            if client is not None:
                await terms.storage.unlink()
            await terms.storage.run(terms.ownership.unlinked)
    except (OSError, ImageError) as error:
        logger.warn(
            "{path} was given away, but: {error}", path=terms.storage.path, error=in_words(error)
        )
    if client is None:
        return
    try:
        await client.disconnect().addTimeout(GOODBYE_SECONDS, reactor)
    except (FlexmigrateError, DeferredTimeout) as error:
        logger.info("the destination was not told that the session is over: {error}", error=error)
