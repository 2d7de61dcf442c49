"""The messages of a session, by the vectors in the documentation, and cut and bent in every way."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.errors import LocalProtocolError, RemoteProtocolError
from flexmigrate.migration.comparison.digests import ImageDigest
from flexmigrate.wire.agreement import Close, CloseKind, PrivateReply, Ready, TLSMode
from flexmigrate.wire.client_handshake import (
    ClientHandshake,
    ClientOptions,
    QueryHandshake,
    SessionRequest,
)
from flexmigrate.wire.constants import MAX_OPTION_REPLY, OptionReply
from flexmigrate.wire.handover import (
    MAX_CLAIMS,
    MAX_JOURNAL,
    MAX_PRIVATE_PAYLOAD,
    MAX_SUPERSEDED,
    MAX_TEXT,
    SESSION_OPTION,
    SESSION_REPLY,
    ZEROES_DIGEST,
    Answer,
    Capability,
    Claim,
    Opening,
    Outcome,
    PrivateCommand,
    Property,
    Purpose,
    State,
    encode_claims,
    encode_image_digest,
    encode_verdicts,
    fit_text,
    parse_answer,
    parse_claims,
    parse_image_digest,
    parse_opening,
    parse_outcome,
    parse_verdicts,
)
from flexmigrate.wire.handshake import RefusingHandshake, ServerHandshake
from flexmigrate.wire.keys import NO_KEY, KeyKind, is_key, key_digest
from flexmigrate.wire.pending import PendingRequest
from flexmigrate.wire.replies import reply_style
from flexmigrate.wire.reply_parser import ReplyParser
from support.negotiation import Exports, Pair

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "handover-protocol.rst"
SIZE = 4194304
ID, EARLIER = bytes(range(16)), bytes(range(16, 32))
COMMIT_KEY, RETRACT_KEY = bytes(range(32, 64)), bytes(range(64, 96))
OPENING = Opening(
    Purpose.MIGRATE,
    ID,
    2,
    State.SENDING,
    SIZE,
    "disk",
    "host-a:/images/disk",
    (EARLIER,),
    commit_digest=key_digest(COMMIT_KEY, KeyKind.COMMIT, ID, 2),
    retract_digest=key_digest(RETRACT_KEY, KeyKind.RETRACT, ID, 2),
    instance=bytes(range(96, 112)),
    properties=Property.READ_ONLY,
)
SETTLING = replace(OPENING.as_committed(COMMIT_KEY), superseded=())
ANSWER = Answer(State.RECEIVING, ID, 1, SIZE, "host-b:/images/disk")
REFUSING = replace(ANSWER, state=State.PREPARED, refusal="it may be the image of host-a")
DONE = Outcome(State.OWNER)
REFUSED = Outcome(State.RECEIVING, "4096 of 8192 bytes are missing")
TELLING = replace(
    ANSWER,
    state=State.OWNER,
    attempt=2,
    capabilities=Capability.JOURNAL,
    journal=b'{"state": "owner"}\n',
)
CHAINED = "blake3-chained:7d4f9286ebabb949b8f2aa673d423744d467c05053e2876dd8a26c88448ca88d"
STYLES = ((False, False), (True, False), (True, True))
PARSERS: tuple[tuple[Any, Callable[[bytes], Any]], ...] = (
    (OPENING, parse_opening),
    (SETTLING, parse_opening),
    (ANSWER, parse_answer),
    (REFUSING, parse_answer),
    (DONE, parse_outcome),
    (REFUSED, parse_outcome),
)
BYTES = bytes(range(256))
CLAIMS = [
    Claim(1048576, 4096, blake3(BYTES * 16).digest()),
    Claim(2097152, 1048576, ZEROES_DIGEST),
]


def documented() -> list[bytes]:
    """Return the blocks of hexadecimal digits in the document, in their order."""
    blocks = re.findall(r"::\n\n((?:    [0-9a-f]+\n)+)", DOCUMENT.read_text())
    return [bytes.fromhex(re.sub(r"\s", "", block)) for block in blocks]


class VectorTests(SynchronousTestCase):
    def test_we_write_and_read_what_is_documented(self) -> None:
        vectors = documented()
        self.assertEqual(len(vectors), len(PARSERS) + 4 + len(STYLES))
        for (message, parse), vector in zip(PARSERS, vectors, strict=False):
            self.assertEqual(message.encode(), vector)
            self.assertEqual(parse(vector), message)

    def test_claims_and_verdicts_are_as_documented(self) -> None:
        claims, verdicts = documented()[len(PARSERS) : len(PARSERS) + 2]
        self.assertEqual(encode_claims(CLAIMS), claims)
        self.assertEqual(parse_claims(claims), CLAIMS)
        self.assertEqual(encode_verdicts([True, False]), verdicts)
        self.assertEqual(parse_verdicts(verdicts, 2), [True, False])

    def test_what_newer_peers_say_is_as_documented(self) -> None:
        digest, answer = documented()[len(PARSERS) + 2 : len(PARSERS) + 4]
        self.assertEqual(encode_image_digest(CHAINED), digest)
        self.assertEqual(parse_image_digest(digest), CHAINED)
        self.assertEqual(TELLING.encode(), answer)
        self.assertEqual(parse_answer(answer), TELLING)

    def test_digests_of_images_are_as_documented(self) -> None:
        made = ImageDigest(2097664)
        made.add(0, 1048576, blake3(BYTES * 4096).digest())
        made.add(1048576, 1049088, None)
        plain = made.text
        made.add(CLAIMS[0].offset, CLAIMS[0].length, CLAIMS[0].digest)
        for digest in (plain, made.text):
            self.assertIn(f"``{digest}``", DOCUMENT.read_text())

    def test_replies_are_as_documented(self) -> None:
        for (structured, extended), vector in zip(STYLES, documented()[-3:], strict=True):
            style = reply_style(structured, extended)
            self.assertEqual(style.private(7, 0, DONE.encode()), vector)

    def test_numbers_are_as_documented(self) -> None:
        text = DOCUMENT.read_text()
        for command in PrivateCommand:
            self.assertRegex(text, rf"(?m)^{command.value:#x}  {command.name}\b")
        for state in State:
            self.assertRegex(text, rf"(?m)^{state.value}      {state.name}\b")
        self.assertIn(f"**{SESSION_OPTION:#x}**", text)
        self.assertIn(f"**{SESSION_REPLY:#x}**", text)


class OlderMessageTests(SynchronousTestCase):
    """Of version 1, which knew of no keys."""

    def test_an_opening_is_read_without_keys(self) -> None:
        older = replace(OPENING, version=1)
        found = parse_opening(older.encode())
        self.assertEqual(older.encode()[2:], OPENING.encode()[2 : len(older.encode())])
        self.assertFalse(found.has_keys)
        self.assertEqual((found.version, found.key, found.properties), (1, NO_KEY, 0))
        with self.assertRaises(RemoteProtocolError):
            parse_opening(older.encode() + b"\0")

    def test_an_answer_says_its_version(self) -> None:
        self.assertEqual(parse_answer(replace(ANSWER, version=1).encode()).version, 1)
        self.assertEqual(parse_answer(ANSWER.encode()).version, 2)


class KeyTests(SynchronousTestCase):
    def test_a_key_is_known_by_its_digest_for_one_attempt_and_one_purpose(self) -> None:
        digest = OPENING.commit_digest
        self.assertTrue(is_key(COMMIT_KEY, digest, KeyKind.COMMIT, ID, 2))
        for key, kind, session, attempt in (
            (RETRACT_KEY, KeyKind.COMMIT, ID, 2),
            (COMMIT_KEY, KeyKind.RETRACT, ID, 2),
            (COMMIT_KEY, KeyKind.COMMIT, EARLIER, 2),
            (COMMIT_KEY, KeyKind.COMMIT, ID, 1),
            (COMMIT_KEY[:-1], KeyKind.COMMIT, ID, 2),
            (b"", KeyKind.COMMIT, ID, 2),
            (digest, KeyKind.COMMIT, ID, 2),
        ):
            self.assertFalse(is_key(key, digest, kind, session, attempt))

    def test_where_there_is_no_digest_no_key_is_right(self) -> None:
        for key in (COMMIT_KEY, NO_KEY, b""):
            self.assertFalse(is_key(key, NO_KEY, KeyKind.COMMIT, ID, 2))


class HostileMessageTests(SynchronousTestCase):
    def test_one_that_is_cut_is_refused(self) -> None:
        for message, parse in PARSERS:
            data = message.encode()
            for length in range(len(data)):
                with self.assertRaises(RemoteProtocolError):
                    parse(data[:length])

    def test_one_that_is_too_long_is_refused_but_of_a_higher_version(self) -> None:
        for message, parse in PARSERS:
            data = message.encode()
            with self.assertRaises(RemoteProtocolError):
                parse(data + b"\0")
            self.assertEqual(parse(b"\0\3" + data[2:] + b"more"), message)
            with self.assertRaises(RemoteProtocolError):
                parse(b"\0\0" + data[2:])

    def test_unknown_purposes_and_states_are_refused(self) -> None:
        data = OPENING.encode()
        for at, value in ((2, 0), (2, 5), (3, 7)):
            with self.assertRaisesRegex(RemoteProtocolError, f"unknown .*{value}"):
                parse_opening(data[:at] + bytes([value]) + data[at + 1 :])

    def test_texts_are_bounded_and_harmless(self) -> None:
        whole, name = OPENING.encode(), OPENING.name.encode()
        head, tail = whole[: whole.index(name) - 2], whole[whole.index(name) + len(name) :]
        for text in (b"a\0b", b"\xff", bytes(MAX_TEXT + 1)):
            with self.assertRaises(RemoteProtocolError):
                parse_opening(head + struct.pack(">H", len(text)) + text + tail)
        bell = parse_opening(head + b"\0\3a\x07b" + tail)
        self.assertEqual(bell.name, "a\N{REPLACEMENT CHARACTER}b")
        self.assertEqual(len(fit_text("\N{EURO SIGN}" * MAX_TEXT).encode()), MAX_TEXT // 3 * 3)
        self.assertEqual(fit_text("a\nb\udcff"), "a\N{REPLACEMENT CHARACTER}b?")

    def test_too_many_superseded_sessions_are_refused(self) -> None:
        most = replace(OPENING, superseded=(EARLIER,) * MAX_SUPERSEDED)
        self.assertEqual(parse_opening(most.encode()), most)
        with self.assertRaises(LocalProtocolError):
            replace(OPENING, superseded=(EARLIER,) * (MAX_SUPERSEDED + 1)).encode()
        data = bytearray(OPENING.encode())
        data[40:42] = struct.pack(">H", MAX_SUPERSEDED + 1)
        with self.assertRaisesRegex(RemoteProtocolError, "17 superseded"):
            parse_opening(bytes(data))

    def test_done_and_refused_at_once_is_refused(self) -> None:
        for data in (b"\0\1\6\1\0\1a", b"\0\1\6\0\0\0", b"\0\1\6\2\0\0"):
            with self.assertRaises(RemoteProtocolError):
                parse_outcome(data)

    def test_what_newer_peers_say_is_hostile_too(self) -> None:
        data = TELLING.encode()
        for length in range(len(data)):
            with self.assertRaises(RemoteProtocolError):
                parse_answer(data[:length])
        longest = replace(TELLING, journal=bytes(MAX_JOURNAL), name="a" * 1024, refusal="b" * 1024)
        self.assertEqual(parse_answer(longest.encode()), longest)
        self.assertLessEqual(len(longest.encode()), MAX_OPTION_REPLY)
        for bent in (data + b"\0", replace(TELLING, journal=bytes(MAX_JOURNAL + 1)).encode()):
            with self.assertRaises(RemoteProtocolError):
                parse_answer(bent)
        digest = encode_image_digest(CHAINED)
        for bent in (digest[:-1], digest + b"\0", b"\0\1\3" + digest[3:], b"\0\0" + digest[2:]):
            with self.assertRaises(RemoteProtocolError):
                parse_image_digest(bent)
        for wrong in ("", "blake3:", "sha256:" + "0" * 64, "blake3:" + "0" * 62):
            with self.assertRaises(LocalProtocolError):
                encode_image_digest(wrong)

    def test_claims_and_verdicts_that_dont_fit_are_refused(self) -> None:
        with self.assertRaises(LocalProtocolError):
            encode_claims(CLAIMS[:1] * (MAX_CLAIMS + 1))
        data = encode_claims(CLAIMS[:1] * MAX_CLAIMS)
        self.assertLessEqual(len(data), MAX_PRIVATE_PAYLOAD)
        self.assertEqual(len(parse_claims(data)), MAX_CLAIMS)
        for bent in (data[:-1], data + b"\0", b"\0\1\xff\xff" + data[4:], b""):
            with self.assertRaises(RemoteProtocolError):
                parse_claims(bent)
        for bent in (b"\0\1\0\1\2", b"\0\1\0\2\1", b"\0\1\0\1", b"\0\1\0\2\1\1"):
            with self.assertRaises(RemoteProtocolError):
                parse_verdicts(bent, 1)

    @given(st.binary(max_size=200))
    def test_garbage_gives_a_message_or_the_remote_error(self, data: bytes) -> None:
        for _, parse in PARSERS:
            try:
                parse(data)
            except RemoteProtocolError:
                continue

    def test_what_cannot_be_said_is_our_mistake(self) -> None:
        for wrong in (
            replace(OPENING, session=b"short"),
            replace(OPENING, attempt=1 << 32),
            replace(OPENING, size=-1),
            replace(OPENING, name="a" * (MAX_TEXT + 1)),
            replace(OPENING, name="\udcff"),
        ):
            with self.assertRaises(LocalProtocolError):
                wrong.encode()


def server(answer: Answer | None = ANSWER, **more: Any) -> ServerHandshake:
    def reply(data: bytes) -> list[tuple[int, bytes]]:
        parse_opening(data)
        assert answer is not None
        return [(SESSION_REPLY, answer.encode()), (OptionReply.ACK, b"")]

    options = {} if answer is None else {SESSION_OPTION: reply}
    return ServerHandshake(Exports(), private_options=options, **more)


WISH = ClientOptions("disk", structured=False, session=SessionRequest(OPENING.encode()))


class AgreeingTests(SynchronousTestCase):
    def test_both_learn_what_the_other_said(self) -> None:
        for piece in (1, 1 << 20):
            client, served = Pair(ClientHandshake(WISH), server(), piece=piece).run().agreed()
            self.assertEqual(client.agreement.private, ((SESSION_OPTION, ANSWER.encode()),))
            self.assertEqual(served.agreement.private, ((SESSION_OPTION, OPENING.encode()),))

    def test_who_does_not_know_it_is_gone_on_with(self) -> None:
        client, served = Pair(ClientHandshake(WISH), server(None)).run().agreed()
        self.assertEqual(client.agreement.private + served.agreement.private, ())

    def test_who_declines_is_left_with_its_reason(self) -> None:
        joined = Pair(ClientHandshake(WISH), server(REFUSING)).run()
        self.assertEqual(joined.client_events[-1], Close(REFUSING.refusal, CloseKind.DECLINED))
        self.assertEqual(joined.server_events[-1].kind, CloseKind.ENDED)

    def test_nonsense_and_no_answer_are_violations(self) -> None:
        for replies in ([(SESSION_REPLY, b"nonsense")], []):
            ending = [*replies, (OptionReply.ACK, b"")]
            machine = ServerHandshake(
                Exports(), private_options={SESSION_OPTION: lambda data, ending=ending: ending}
            )
            joined = Pair(ClientHandshake(WISH), machine).run()
            self.assertEqual(joined.client_events[-1].kind, CloseKind.VIOLATION)

    def test_who_only_asks_is_told_whatever_the_answer(self) -> None:
        for answer in (ANSWER, REFUSING):
            joined = Pair(QueryHandshake(WISH), server(answer)).run()
            told, closed = joined.client_events[-2:]
            self.assertEqual(told, PrivateReply(answer.encode()))
            self.assertEqual(closed.kind, CloseKind.ENDED)
        joined = Pair(QueryHandshake(WISH), server(None)).run()
        self.assertIn("ERR_UNSUP to SESSION", joined.client_events[-1].reason)

    def test_the_gate_sees_what_was_agreed_on_and_keeps_others_out(self) -> None:
        seen = []

        def gate(export: str, private: Any) -> str | None:
            seen.append((export, dict(private)))
            return None if SESSION_OPTION in private else "it waits for its source"

        machine = Pair(ClientHandshake(WISH), server(gate=gate)).run()
        self.assertIsInstance(machine.client_events[-1], Ready)
        self.assertEqual(seen, [("disk", {SESSION_OPTION: OPENING.encode()})])
        plain = Pair(ClientHandshake(ClientOptions("disk")), server(gate=gate)).run()
        self.assertIn("it waits for its source", plain.client_events[-1].reason)


class JudgingTests(SynchronousTestCase):
    """What a client makes of the answers to what it says of itself."""

    def joined(
        self, wish: SessionRequest, reply: Callable[[Opening], list[tuple[int, bytes]]]
    ) -> Any:
        """Return how both ended, and what was said of sessions."""
        said: list[Opening] = []

        def answer(data: bytes) -> list[tuple[int, bytes]]:
            said.append(parse_opening(data))
            return reply(said[-1])

        machine = ServerHandshake(Exports(), private_options={SESSION_OPTION: answer})
        joined = Pair(ClientHandshake(replace(WISH, session=wish)), machine).run()
        return joined.client_events[-1], said

    def replying(self, answer: Answer) -> list[tuple[int, bytes]]:
        return [(SESSION_REPLY, answer.encode()), (OptionReply.ACK, b"")]

    def test_may_say_something_else_and_the_last_counts(self) -> None:
        again = replace(OPENING, key=RETRACT_KEY)
        wish = SessionRequest(OPENING.encode(), lambda data: again.encode())
        end, said = self.joined(
            wish, lambda opening: self.replying(ANSWER if opening == again else REFUSING)
        )
        self.assertIsInstance(end, Ready)
        self.assertEqual(said, [OPENING, again])

    def test_says_something_else_once(self) -> None:
        wish = SessionRequest(OPENING.encode(), lambda data: OPENING.encode())
        end, said = self.joined(wish, lambda opening: self.replying(REFUSING))
        self.assertEqual(end, Close(REFUSING.refusal, CloseKind.DECLINED))
        self.assertEqual(len(said), 2)

    def test_may_leave_whatever_the_answer(self) -> None:
        wish = SessionRequest(OPENING.encode(), lambda data: "it is too old")
        end, _ = self.joined(wish, lambda opening: self.replying(ANSWER))
        self.assertEqual(end, Close("it is too old", CloseKind.DECLINED))

    def test_has_no_session_where_it_said_that_it_wants_none(self) -> None:
        plain = Opening(Purpose.PLAIN, bytes(16), 1, State.NONE, SIZE)
        end, said = self.joined(
            SessionRequest(plain.encode(), optional=True), lambda opening: self.replying(ANSWER)
        )
        self.assertEqual(end.agreement.private, ())
        self.assertEqual(said, [plain])

    def test_only_who_does_not_know_the_option_is_gone_on_with(self) -> None:
        for error, expected in (
            (OptionReply.ERR_UNSUP, Ready),
            (OptionReply.ERR_POLICY, Close),
            (OptionReply.ERR_INVALID, Close),
            (OptionReply.ERR_UNKNOWN, Close),
            (OptionReply.ERR_TLS_REQD, Close),
        ):
            wish = SessionRequest(OPENING.encode())
            end, _ = self.joined(wish, lambda opening, error=error: [(error, b"why")])
            self.assertIsInstance(end, expected, error)
            if expected is Close:
                self.assertRegex(end.reason, f"{error.name} to SESSION: why")
            end, _ = self.joined(
                replace(wish, optional=True), lambda opening, error=error: [(error, b"why")]
            )
            self.assertIsInstance(end, Ready, error)

    def test_who_says_that_the_option_is_not_known_and_answers_a_probe_is_left(self) -> None:
        probe = Opening(Purpose.ASK, ID, 0, State.NONE, 0)
        wish = SessionRequest(OPENING.encode(), probe=probe.encode())

        def reply(opening: Opening) -> list[tuple[int, bytes]]:
            if opening.purpose is Purpose.ASK:
                return self.replying(replace(ANSWER, version=1))
            return [(OptionReply.ERR_UNSUP, b"no migration is waited for here")]

        end, said = self.joined(wish, reply)
        self.assertEqual([each.purpose for each in said], [Purpose.MIGRATE, Purpose.ASK])
        self.assertEqual(end.kind, CloseKind.DECLINED)
        self.assertIn("host-b:/images/disk supports sessions", end.reason)
        end, said = self.joined(wish, lambda opening: [(OptionReply.ERR_UNSUP, b"")])
        self.assertIsInstance(end, Ready)
        self.assertEqual(end.agreement.private, ())
        self.assertEqual(len(said), 2)


class RefusingTests(SynchronousTestCase):
    def test_each_option_is_refused_for_the_same_reason(self) -> None:
        for wish in (
            WISH,
            ClientOptions("disk"),
            ClientOptions("disk", tls=TLSMode.REQUIRE),
            replace(WISH, session=SessionRequest(OPENING.encode(), optional=True)),
        ):
            refusing = RefusingHandshake(Exports(), "the access list doesn't allow it")
            joined = Pair(ClientHandshake(wish), refusing).run()
            end = joined.client_events[-1]
            self.assertIsInstance(end, Close)
            self.assertIn("ERR_POLICY", end.reason)
            self.assertIn("the access list doesn't allow it", end.reason)
            self.assertEqual(joined.server_events[-1].kind, CloseKind.ENDED)


class RepliesTests(SynchronousTestCase):
    def parse(self, structured: bool, extended: bool, data: bytes, piece: int) -> bytes | None:
        parser = ReplyParser(structured=structured, extended=extended)
        parser.expect(7, PendingRequest(PrivateCommand.COMMIT))
        for at in range(0, len(data), piece):
            parser.receive(data[at : at + piece])
        [(cookie, awaited)] = parser.take()
        self.assertEqual(cookie, 7)
        return awaited.payload

    def test_are_understood_in_each_style_however_they_are_cut(self) -> None:
        for style in STYLES:
            for payload in (b"", DONE.encode(), bytes(MAX_PRIVATE_PAYLOAD)):
                data = reply_style(*style).private(7, 0, payload)
                for piece in (1 if len(payload) < 100 else 1000, len(data)):
                    self.assertEqual(self.parse(*style, data, piece), payload)

    def test_too_long_a_payload_is_refused(self) -> None:
        for style in STYLES:
            data = reply_style(*style).private(7, 0, bytes(MAX_PRIVATE_PAYLOAD + 1))
            with self.assertRaisesRegex(RemoteProtocolError, "reply to COMMIT"):
                self.parse(*style, data, len(data))

    def test_success_without_a_payload_is_refused(self) -> None:
        for style in STYLES[1:]:
            data = reply_style(*style).ok(7, 0)
            with self.assertRaisesRegex(RemoteProtocolError, "no payload in reply to COMMIT"):
                self.parse(*style, data, len(data))

    def test_a_payload_where_none_belongs_is_refused(self) -> None:
        for structured, extended in STYLES[1:]:
            parser = ReplyParser(structured=structured, extended=extended)
            parser.expect(7, PendingRequest(3))
            with self.assertRaisesRegex(RemoteProtocolError, "a payload in reply to FLUSH"):
                parser.receive(reply_style(structured, extended).private(7, 0, b"x"))
