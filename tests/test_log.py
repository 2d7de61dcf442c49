from __future__ import annotations

import errno
import io
import os
import threading
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import LogBeginner, Logger, LogLevel, LogPublisher
from twisted.python.failure import Failure
from twisted.python.reflect import namedAny
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate import log
from flexmigrate.log import MAX_LINE, LineObserver, Verbosity, format_line, one_line

# 2001-02-03, a bit after four.
WHEN = 981173106.25


def event(text: str, **values: Any) -> dict[str, Any]:
    return {
        "log_format": text,
        "log_level": LogLevel.info,
        "log_namespace": "flexmigrate.server.connection",
        "log_time": WHEN,
        **values,
    }


class Descriptor:
    """Stands for ``os.write``: *answers* are the counts to return or errors to raise, in order;
    then everything is taken.
    """

    def __init__(self, *answers: int | OSError) -> None:
        self.written = b""
        self.calls = 0
        self.interrupt: Callable[[], None] | None = None
        self._answers = list(answers)

    def write(self, fd: int, data: bytes) -> int:
        self.calls += 1
        answer = self._answers.pop(0) if self._answers else len(data)
        if isinstance(answer, OSError):
            raise answer
        self.written += data[:answer]
        if self.interrupt is not None:
            interrupt, self.interrupt = self.interrupt, None
            interrupt()
        return answer

    @property
    def lines(self) -> list[str]:
        return self.written.decode().splitlines()


def observer(descriptor: Descriptor, verbosity: Verbosity = Verbosity.NORMAL) -> LineObserver:
    return LineObserver(-1, verbosity, descriptor.write)


class LayoutTests(SynchronousTestCase):
    def test_time_level_namespace_and_message(self) -> None:
        self.assertEqual(
            format_line(event("client {number} from {peer}", number=3, peer="::1")),
            b"2001-02-03T04:05:06.250Z info  server.connection: client 3 from ::1\n",
        )

    def test_a_failure_is_one_line_with_its_traceback(self) -> None:
        try:
            raise ValueError("no\nsuch thing")
        except ValueError:
            failure = Failure()
        line = format_line(event("it broke", log_failure=failure, log_level=LogLevel.critical))
        self.assertEqual(line.count(b"\n"), 1)
        self.assertIn(b" critical server.connection: it broke\\nTraceback", line)
        self.assertTrue(line.endswith(b"ValueError: no\\nsuch thing\n"), line)

    def test_an_event_without_text_makes_no_line(self) -> None:
        self.assertEqual(format_line({"log_level": LogLevel.info}), b"")

    def test_an_event_that_cannot_be_formatted_says_so(self) -> None:
        self.assertIn(b"Unable to format event", format_line(event("{missing}")))

    def test_a_hostile_name_cannot_forge_a_line(self) -> None:
        name = "disk\n2001-02-03T04:05:06.250Z info  migration: complete\x1b[2J\r\u2028\u202e"
        line = format_line(event("export {name}", name=name)).decode()
        self.assertEqual(len(line.splitlines()), 1)
        self.assertTrue(line[:-1].isprintable())
        self.assertIn(r"export disk\n2001-", line)

    def test_an_overlong_message_is_cut_and_says_by_how_much(self) -> None:
        line = format_line(event("{name}", name="x" * (MAX_LINE + 5)))
        self.assertTrue(line.endswith(b"xxx... (5 more)\n"))

    @given(st.text(st.characters(exclude_categories=())))
    def test_escaping_can_be_undone(self, text: str) -> None:
        escaped = one_line(text)
        self.assertTrue(escaped.isprintable())
        encoded = escaped.encode("ascii", "backslashreplace")
        self.assertEqual(encoded.decode("unicode_escape"), text)


class LevelTests(SynchronousTestCase):
    def shown(self, verbosity: Verbosity, namespace: str) -> list[str]:
        descriptor = Descriptor()
        logger = Logger(namespace=namespace, observer=observer(descriptor, verbosity))
        for level in LogLevel.iterconstants():
            logger.emit(level, "x")
        return [line.split()[1] for line in descriptor.lines]

    def test_normally_information_is_shown(self) -> None:
        shown = self.shown(Verbosity.NORMAL, "flexmigrate.migration")
        self.assertEqual(shown, ["info", "warn", "error", "critical"])

    def test_quiet_shows_errors_only(self) -> None:
        shown = self.shown(Verbosity.QUIET, "flexmigrate.migration")
        self.assertEqual(shown, ["error", "critical"])

    def test_verbose_shows_everything(self) -> None:
        for namespace in ("flexmigrate.migration", "twisted.internet"):
            self.assertEqual(len(self.shown(Verbosity.VERBOSE, namespace)), 5)

    def test_what_others_tell_as_information_is_for_verbose_only(self) -> None:
        for namespace in ("twisted.internet", "log_legacy", "flexmigrates"):
            self.assertEqual(self.shown(Verbosity.NORMAL, namespace), ["warn", "error", "critical"])


class WritingTests(SynchronousTestCase):
    def test_an_event_is_one_write(self) -> None:
        descriptor = Descriptor()
        observer(descriptor)(event("a\nb"))
        self.assertEqual(descriptor.calls, 1)

    def test_a_short_write_is_continued(self) -> None:
        descriptor = Descriptor(1, 2)
        observer(descriptor)(event("whole"))
        self.assertEqual(descriptor.written, format_line(event("whole")))

    def test_what_an_interruption_logs_in_the_middle_of_a_line_comes_after_it(self) -> None:
        descriptor = Descriptor(5)
        under_test = observer(descriptor)
        descriptor.interrupt = lambda: under_test(event("a signal"))
        under_test(event("a line"))
        self.assertEqual(
            descriptor.written, format_line(event("a line")) + format_line(event("a signal"))
        )

    def test_lost_lines_are_counted_and_told(self) -> None:
        full = OSError(errno.ENOSPC, "full")
        descriptor = Descriptor(full, full)
        under_test = observer(descriptor)
        for number in range(4):
            under_test(event("line {number}", number=number))
        lost, *rest = (line.split(": ", 1)[1] for line in descriptor.lines)
        self.assertEqual(lost, "2 lines of the log were lost")
        self.assertEqual(rest, ["line 2", "line 3"])

    def test_a_descriptor_that_does_not_block_is_waited_for(self) -> None:
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        os.set_blocking(writer, False)
        # More than a pipe holds: the writing end has to wait for the reading one.
        lines = [event("{number} {filler}", number=n, filler="x" * 1000) for n in range(200)]
        received: list[bytes] = []

        def read() -> None:
            while piece := os.read(reader, 4096):
                received.append(piece)

        thread = threading.Thread(target=read)
        thread.start()
        under_test = LineObserver(writer)
        for line in lines:
            under_test(line)
        os.close(writer)
        thread.join()
        self.assertEqual(b"".join(received), b"".join(map(format_line, lines)))


class ThreadsTests(SynchronousTestCase):
    """The system's duty 7: log lines never interleave or overlap, whatever threads write."""

    THREADS = 8
    LINES = 200

    def test_lines_never_interleave(self) -> None:
        reader, writer = os.pipe()
        received: list[bytes] = []

        def read() -> None:
            while piece := os.read(reader, 65536):
                received.append(piece)

        # Some lines are longer than what a pipe takes at once (PIPE_BUF, 4096 bytes).
        under_test = LineObserver(writer)
        lengths = [1, 100, 5000]

        def hammer(thread: int) -> None:
            logger = Logger(namespace="flexmigrate.test", observer=under_test)
            for number in range(self.LINES):
                filler = f"{thread:x}" * lengths[number % len(lengths)]
                logger.info(
                    "{thread}/{number}/{filler}", thread=thread, number=number, filler=filler
                )

        watching = threading.Thread(target=read)
        writing = [threading.Thread(target=hammer, args=(n,)) for n in range(self.THREADS)]
        for thread in (watching, *writing):
            thread.start()
        for thread in writing:
            thread.join()
        os.close(writer)
        watching.join()
        os.close(reader)

        seen: dict[int, list[int]] = {n: [] for n in range(self.THREADS)}
        for line in b"".join(received).decode().splitlines():
            stamp, level, namespace, message = line.split()
            thread, number, filler = message.split("/")
            self.assertEqual((level, namespace), ("info", "test:"))
            self.assertTrue(stamp.endswith("Z"))
            self.assertEqual(filler, f"{int(thread):x}" * lengths[int(number) % len(lengths)])
            seen[int(thread)].append(int(number))
        self.assertEqual(seen, {n: list(range(self.LINES)) for n in range(self.THREADS)})


class StartTests(SynchronousTestCase):
    def test_what_was_logged_before_is_not_lost_and_standard_output_stays(self) -> None:
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        streams = type("Streams", (), {"stdout": object(), "stderr": object()})()
        before = vars(streams).copy()
        publisher = LogPublisher()
        beginner = LogBeginner(publisher, io.StringIO(), streams, _NoWarnings())
        self.patch(log, "globalLogBeginner", beginner)

        logger = Logger(namespace="flexmigrate.service", observer=publisher)
        logger.info("early")
        log.start_logging(0, writer)
        logger.info("late")
        logger.debug("unseen")
        os.close(writer)

        lines = os.read(reader, 65536).decode().splitlines()
        self.assertEqual([line.split(": ")[1] for line in lines], ["early", "late"])
        self.assertEqual(vars(streams), before)

    def test_twistd_finds_an_observer_by_name(self) -> None:
        for verbosity in Verbosity:
            make = namedAny(f"flexmigrate.log.Verbosity.{verbosity.name}.stdout_observer")
            self.assertIsInstance(make(), LineObserver)


class _NoWarnings:
    """Stands for the module ``warnings``, which a `LogBeginner` takes over."""

    showwarning = staticmethod(lambda *_: None)
