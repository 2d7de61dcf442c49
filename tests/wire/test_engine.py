from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.errors import LocalProtocolError, RemoteProtocolError
from flexmigrate.wire.agreement import (
    Agreement,
    Close,
    CloseKind,
    Event,
    ExportInfo,
    Ready,
    Send,
    StartTLS,
)
from flexmigrate.wire.constants import TransmissionFlag
from flexmigrate.wire.engine import Negotiation, Phase

AGREEMENT = Agreement(ExportInfo("", 0, TransmissionFlag(0)))


class Echo(Negotiation):
    """Takes frames of a length byte and as many bytes; some of them mean something."""

    def begin(self) -> list[Event]:
        self._begin(1, self._length)
        return self._take_events()

    def _length(self, frame: bytes) -> None:
        self._expect(frame[0], self._word)

    def _word(self, frame: bytes) -> None:
        self._expect(1, self._length)
        if frame == b"skip":
            self._skip(1000)
        elif frame == b"tls":
            self._start_tls()
        elif frame == b"ready":
            self._ready(AGREEMENT)
        elif frame == b"close":
            self._close("asked to", CloseKind.ENDED)
        elif frame == b"wrong":
            raise RemoteProtocolError("a wrong word")
        else:
            self._send(frame)

    def _encrypted(self) -> None:
        self._send(b"secret")


def word(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def begun() -> Echo:
    echo = Echo()
    echo.begin()
    return echo


def in_phase(phase: Phase) -> Echo:
    echo = Echo() if phase is Phase.NEW else begun()
    words = {Phase.STARTING_TLS: b"tls", Phase.READY: b"ready", Phase.CLOSED: b"close"}
    if phase in words:
        echo.receive(word(words[phase]))
    assert echo.phase is phase
    return echo


class Frames(SynchronousTestCase):
    def test_a_frame_is_taken_when_it_is_whole(self) -> None:
        echo = begun()
        self.assertEqual(echo.receive(b"\x05hel"), [])
        self.assertEqual(echo.receive(b"lo\x00"), [Send(b"hello"), Send(b"")])

    def test_any_buffer_can_be_received(self) -> None:
        for data in (b"\x01x", bytearray(b"\x01x"), memoryview(b"\x01x")):
            self.assertEqual(begun().receive(data), [Send(b"x")])

    def test_skipped_bytes_are_not_kept(self) -> None:
        echo = begun()
        echo.receive(word(b"skip"))
        for _ in range(10):
            self.assertEqual(echo.receive(bytes(99)), [])
            self.assertEqual(len(echo._buffer), 0)
        self.assertEqual(echo.receive(bytes(10) + word(b"x")), [Send(b"x")])

    def test_the_rest_is_left_over(self) -> None:
        echo = begun()
        self.assertEqual(echo.receive(word(b"ready") + b"\x25\x60"), [Ready(AGREEMENT)])
        self.assertEqual(echo.leftover, b"\x25\x60")

    def test_a_broken_rule_closes_with_its_text(self) -> None:
        echo = begun()
        events = echo.receive(word(b"x") + word(b"wrong") + word(b"y"))
        self.assertEqual(events, [Send(b"x"), Close("a wrong word", CloseKind.VIOLATION)])

    def test_nothing_is_kept_after_the_end(self) -> None:
        echo = begun()
        echo.receive(word(b"close") + bytes(1000))
        self.assertEqual(len(echo._buffer), 0)


class TLS(SynchronousTestCase):
    def test_what_comes_through_tls_goes_on(self) -> None:
        echo = begun()
        self.assertEqual(echo.receive(word(b"tls")), [StartTLS()])
        self.assertEqual(echo.receive(b""), [])
        self.assertEqual(echo.tls_started(), [Send(b"secret")])
        self.assertEqual(echo.receive(word(b"x")), [Send(b"x")])

    def test_plaintext_behind_starttls_closes(self) -> None:
        together, later = begun(), begun()
        events = together.receive(word(b"tls") + b"\x01")
        later.receive(word(b"tls"))
        for close in (events, later.receive(b"\x01")):
            self.assertEqual(len(close), 1)
            assert isinstance(close[0], Close)
            self.assertEqual(close[0].kind, CloseKind.VIOLATION)


class EveryCallInEveryPhase(SynchronousTestCase):
    CALLS: dict[str, Callable[[Echo], object]] = {
        "receive": lambda echo: echo.receive(b"\x01x"),
        "tls_started": Echo.tls_started,
        "leftover": lambda echo: echo.leftover,
    }
    ALLOWED = {
        (Phase.HAGGLING, "receive"),
        (Phase.STARTING_TLS, "receive"),
        (Phase.CLOSED, "receive"),
        (Phase.STARTING_TLS, "tls_started"),
        (Phase.READY, "leftover"),
    }

    def test_what_is_not_listed_is_our_mistake_and_changes_nothing(self) -> None:
        for phase in Phase:
            for name, call in self.CALLS.items():
                echo = in_phase(phase)
                if (phase, name) in self.ALLOWED:
                    call(echo)
                    continue
                with self.assertRaisesRegex(LocalProtocolError, phase.value):
                    call(echo)
                self.assertIs(echo.phase, phase)

    def test_after_the_end_bytes_are_ignored(self) -> None:
        echo = in_phase(Phase.CLOSED)
        self.assertEqual(echo.receive(word(b"x")), [])
        self.assertEqual(len(echo._buffer), 0)

    def test_a_side_that_never_starts_tls_says_so(self) -> None:
        bare = Negotiation()
        bare._start_tls()
        with self.assertRaisesRegex(LocalProtocolError, "never starts TLS"):
            bare.tls_started()
