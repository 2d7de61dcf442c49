"""A source's proposal to a destination in the negotiation, and its reaction to the answer.

Three kinds of peers answer: a flexmigrate that waits for the image, and agrees or declines; one
that doesn't, which declines; and a server that knows no sessions. The image of the last one is
overwritten, so the operator is warned.
"""

from __future__ import annotations

from dataclasses import replace

from flexmigrate.client import NBDClientProtocol
from flexmigrate.errors import MigrationError, SessionDeclined
from flexmigrate.migration.request import HandoverRule
from flexmigrate.migration.source.environment import SizeMismatch
from flexmigrate.migration.source.handover import FIRST_WITH_KEYS, HandoverTerms
from flexmigrate.wire.client_options import SessionRequest
from flexmigrate.wire.constants import ServerRole
from flexmigrate.wire.handover import NO_ID, Answer, Opening, Purpose, State, parse_answer
from flexmigrate.wire.keys import NO_KEY


class Declined(MigrationError):
    """The destination is a flexmigrate, and declines; the text has its name and its reason."""


class Proposal:
    """The proposal of one negotiation.

    :param opening: the first opening that is sent.
    :ivar answer: the destination's last answer; None if there was none.
    """

    def __init__(self, opening: Opening) -> None:
        self.opening = opening
        self.answer: Answer | None = None

    def session_request(self, export: str) -> SessionRequest:
        """Return what the client's negotiation has to know.

        :param export: the name, at the destination.
        """
        self.opening = replace(self.opening, export=export)
        return SessionRequest(
            self.opening.encode(),
            self._judge,
            self._probe(),
            optional=self.opening.purpose is Purpose.PLAIN,
        )

    def _probe(self) -> bytes | None:
        """Return what a server is asked that calls our option unsupported: an older flexmigrate
        that serves its image says that of a migration, but does tell whose the image is.
        """
        if self.opening.purpose is not Purpose.MIGRATE:
            return None
        asking = Opening(Purpose.ASK, NO_ID, 0, State.NONE, 0, export=self.opening.export)
        return asking.encode()

    def _judge(self, data: bytes) -> bytes | str | None:
        self.answer = parse_answer(data)
        return self.judge(self.answer)

    def judge(self, answer: Answer) -> bytes | str | None:
        """Return what to say instead, or why the destination is left, or None."""
        return None

    def check(self, client: NBDClientProtocol) -> str | None:
        """See that the server that *client* has reached may be written to; return what the operator
        should know of it, if anything.

        :raises Declined: it may not.
        """
        return None

    def declined(self, error: SessionDeclined) -> MigrationError:
        """Return what it means that the destination was left because it declined, or because of
        what it said.
        """
        answer = self.answer
        if answer is None:
            return Declined(str(error))
        if answer.size != self.opening.size and self.opening.purpose is not Purpose.SETTLE:
            return SizeMismatch(answer.size, self.opening.size)
        return Declined(f"{answer.name}: {error}" if answer.name else str(error))


class MigrationProposal(Proposal):
    """The proposal at the beginning of an attempt.

    :param terms: the terms of the handover.
    :param attempt: its number.
    :param session: whether a session is wanted.
    """

    def __init__(self, terms: HandoverTerms, attempt: int, *, session: bool) -> None:
        super().__init__(terms.opening(attempt, session=session))
        self._terms = terms
        self._attempt = attempt

    def judge(self, answer: Answer) -> bytes | str | None:
        """Leave whoever doesn't know of keys; show that what is there was given up, if it was."""
        if answer.version < FIRST_WITH_KEYS and not self._terms.old_peers:
            return (
                "its version is too old to ask for a key, so that anybody who reaches it could "
                "commit in our name: upgrade it, or say --allow-old-peers"
            )
        if not answer.refusal or self.opening.purpose is not Purpose.MIGRATE:
            return None
        key = self._terms.retract_key(answer, self._attempt)
        if key == NO_KEY or key == self.opening.key:
            return None
        self.opening = replace(self.opening, key=key)
        return self.opening.encode()

    def check(self, client: NBDClientProtocol) -> str | None:
        """Leave a server that says that it serves its image; return a warning for one that doesn't
        say that it waits for one, as no server of another project can.
        """
        agreement = client.agreement
        if agreement.role is ServerRole.SERVING:
            raise Declined("it serves its image to clients, and waits for no migration")
        if agreement.role is ServerRole.RECEIVING or self.answer is not None:
            return None
        if self._terms.rule is HandoverRule.SESSION:
            return None  # without a session it is left anyway
        return (
            f"{self._terms.address} doesn't say that it waits for a migration: all that it has is "
            "overwritten"
        )
