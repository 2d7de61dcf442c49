from __future__ import annotations

import errno
import io
import json
import os
import re
import threading
import time
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import LogBeginner, Logger, LogLevel, LogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.log import observer as observers
from flexmigrate.log.layouts import (
    MAX_LINE,
    format_flexnbd,
    format_json,
    format_line,
    layout_of,
    one_line,
)
from flexmigrate.log.observer import LineObserver
from flexmigrate.log.settings import FORMATS, LogSettings

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


def observer(descriptor: Descriptor, settings: LogSettings | None = None) -> LineObserver:
    return LineObserver(-1, settings, descriptor.write)


class LayoutTests(SynchronousTestCase):
    def test_time_level_namespace_and_message(self) -> None:
        self.assertEqual(
            format_line(event("client {number} from {peer}", number=3, peer="::1")),
            b"2001-02-03T04:05:06.250Z info  server.connection: client 3 from ::1\n",
        )

    def test_a_failure_is_one_line_with_its_traceback(self) -> None:
        line = format_line(event("it broke", log_failure=failure(), log_level=LogLevel.critical))
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


class Peer:
    """A client, to the log."""

    log_about = {"client": "3 192.0.2.7:40312"}


def failure() -> Failure:
    try:
        raise ValueError("no\nsuch thing")
    except ValueError:
        return Failure()


class OnlyItsClass:
    """What a class-level Logger has for its source: a class, whose property is no mapping."""

    @property
    def log_about(self) -> dict[str, str]:
        return {"client": "?"}


class AboutTests(SynchronousTestCase):
    def test_every_layout_shows_whom_an_event_is_about(self) -> None:
        under_test = event("closing it", log_source=Peer())
        self.assertIn(
            b" server.connection [client 3 192.0.2.7:40312]: closing it\n", format_line(under_test)
        )
        self.assertEqual(json.loads(format_json(under_test))["client"], "3 192.0.2.7:40312")
        self.assertIn(b": client 3 192.0.2.7:40312: closing it\n", format_flexnbd(under_test))

    def test_any_other_source_is_not_shown(self) -> None:
        for source in (self, OnlyItsClass, None, 3):
            line = format_line(event("x", log_source=source))
            self.assertTrue(line.endswith(b" server.connection: x\n"), line)


class JsonTests(SynchronousTestCase):
    def loaded(self, made: dict[str, Any]) -> dict[str, Any]:
        line = format_json(made)
        self.assertEqual(line.count(b"\n"), 1)
        self.assertTrue(line.endswith(b"}\n"))
        loaded: dict[str, Any] = json.loads(line)
        return loaded

    def test_an_event(self) -> None:
        made = event("sent {n} to {whom!r}: {rate}", n=5, whom="a\nb", rate=float("inf"))
        self.assertEqual(
            self.loaded(made),
            {
                "time": "2001-02-03T04:05:06.250Z",
                "level": "info",
                "namespace": "server.connection",
                "message": "sent 5 to 'a\\nb': inf",
                "fields": {"n": 5, "whom": "a\nb"},
            },
        )

    def test_a_traceback_is_a_field(self) -> None:
        loaded = self.loaded(event("it broke", log_failure=failure()))
        self.assertEqual(loaded["message"], "it broke")
        self.assertTrue(loaded["traceback"].startswith("Traceback"), loaded)
        self.assertTrue(loaded["traceback"].endswith("ValueError: no\nsuch thing"), loaded)

    def test_an_event_without_text_makes_no_line(self) -> None:
        self.assertEqual(format_json({"log_level": LogLevel.info}), b"")

    @given(st.text(st.characters(exclude_categories=())))
    def test_any_text_comes_back(self, text: str) -> None:
        loaded = self.loaded(event("{name}!", name=text))
        self.assertEqual(loaded["message"], f"{text}!")


class FlexnbdTests(SynchronousTestCase):
    # What flexnbd prints: "%PRIu64:%c:%d %p %s %s:%d: "
    LINE = re.compile(r"(\d+):([DIWEF]):(\d+) (0x[0-9a-f]+) (\S*) (\S+):(\d+): (.*)\n")

    def test_the_layout(self) -> None:
        before = time.monotonic()
        made = event("hello", log_time=time.time())
        found = self.LINE.fullmatch(format_flexnbd(made, "/images/vm7").decode())
        assert found is not None
        milliseconds, letter, pid, _, context, file, line, text = found.groups()
        self.assertLess(abs(int(milliseconds) / 1000 - before), 5)
        self.assertEqual((letter, int(pid)), ("I", os.getpid()))
        self.assertEqual((context, line, text), ("/images/vm7", "0", "hello"))
        self.assertEqual(file, "flexmigrate/server/connection.py")

    def test_the_letters_of_the_levels(self) -> None:
        letters = ""
        for level in LogLevel.iterconstants():
            found = self.LINE.fullmatch(format_flexnbd(event("x", log_level=level)).decode())
            assert found is not None
            letters += found[2]
        self.assertEqual(letters, "DIWEF")

    def test_the_context_is_the_image_and_ends_no_line(self) -> None:
        layout = layout_of(LogSettings(form="flexnbd"), "a\nb")
        self.assertIn(rb" a\nb ", layout(event("x")))

    def test_a_traceback_is_part_of_the_line(self) -> None:
        line = format_flexnbd(event("it broke", log_failure=failure()))
        self.assertEqual(line.count(b"\n"), 1)
        self.assertIn(rb"it broke\nTraceback", line)


class LevelTests(SynchronousTestCase):
    def shown(self, namespace: str, **chosen: Any) -> list[str]:
        descriptor = Descriptor()
        settings = LogSettings(**chosen)
        logger = Logger(namespace=namespace, observer=observer(descriptor, settings))
        for level in LogLevel.iterconstants():
            logger.emit(level, "x")
        return [line.split()[1] for line in descriptor.lines]

    def test_normally_information_is_shown(self) -> None:
        shown = self.shown("flexmigrate.migration")
        self.assertEqual(shown, ["info", "warn", "error", "critical"])

    def test_quiet_shows_errors_only(self) -> None:
        for namespace in ("flexmigrate.migration", "twisted.internet"):
            self.assertEqual(self.shown(namespace, verbosity=-1), ["error", "critical"])

    def test_verbose_shows_everything(self) -> None:
        for namespace in ("flexmigrate.migration", "twisted.internet"):
            self.assertEqual(len(self.shown(namespace, verbosity=1)), 5)

    def test_what_others_tell_as_information_is_for_verbose_only(self) -> None:
        for namespace in ("twisted.internet", "log_legacy", "flexmigrates"):
            self.assertEqual(self.shown(namespace), ["warn", "error", "critical"])

    def test_a_level_of_a_namespace_holds_for_it_and_all_below(self) -> None:
        levels = (("migration", "debug"), ("twisted.internet", "info"))
        for namespace, lowest in (
            ("flexmigrate.migration", "debug"),
            ("flexmigrate.migration.source.machine", "debug"),
            ("flexmigrate.migrations", "info"),
            ("flexmigrate.server", "info"),
            ("twisted.internet.tcp", "info"),
            ("twisted.web", "warn"),
        ):
            self.assertEqual(self.shown(namespace, levels=levels)[0], lowest, namespace)

    def test_the_longest_namespace_wins_and_comes_before_the_verbosity(self) -> None:
        levels = (("migration.source", "debug"), ("migration", "critical"))
        for verbosity in (-1, 0, 1):
            chosen: dict[str, Any] = {"levels": levels, "verbosity": verbosity}
            self.assertEqual(self.shown("flexmigrate.migration.lock", **chosen), ["critical"])
            self.assertEqual(len(self.shown("flexmigrate.migration.source.machine", **chosen)), 5)

    def test_all_of_ours_have_a_name(self) -> None:
        levels = (("flexmigrate", "error"),)
        self.assertEqual(self.shown("flexmigrate.server", levels=levels), ["error", "critical"])
        self.assertEqual(self.shown("twisted.web", levels=levels)[0], "warn")


class WritingTests(SynchronousTestCase):
    def test_in_every_layout_an_event_is_one_line(self) -> None:
        for form in FORMATS:
            descriptor = Descriptor(OSError(errno.ENOSPC, "full"))
            under_test = observer(descriptor, LogSettings(form=form))
            for number in range(2):
                under_test(event("a\nb {n}\u2028", n=number, log_failure=failure()))
            lost, line = descriptor.lines
            self.assertIn("1 lines of the log were lost", lost)
            self.assertIn("ValueError", line)

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


class JournalTests(SynchronousTestCase):
    def written(self, stream: str) -> bytes:
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        self.addCleanup(os.close, writer)
        found = os.fstat(writer)
        self.patch(os, "environ", {"JOURNAL_STREAM": stream.format(found=found)})
        under_test = LineObserver(writer)
        for level in (LogLevel.warn, LogLevel.error, LogLevel.info):
            event = {"log_format": "said", "log_level": level, "log_time": 0.0}
            under_test({**event, "log_namespace": "flexmigrate.test"})
        return os.read(reader, 65536)

    def test_each_line_has_its_priority_where_the_journal_reads_it(self) -> None:
        lines = self.written("{found.st_dev}:{found.st_ino}").splitlines()
        self.assertEqual([line[:7] for line in lines], [b"<4>1970", b"<3>1970", b"<6>1970"])

    def test_nobody_else_gets_one(self) -> None:
        for stream in ("", "8:1", "none"):
            self.assertNotIn(b"<", self.written(stream))


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
        self.patch(observers, "globalLogBeginner", beginner)

        logger = Logger(namespace="flexmigrate.service", observer=publisher)
        logger.info("early")
        observers.start_logging(LogSettings(), writer)
        logger.info("late")
        logger.debug("unseen")
        os.close(writer)

        lines = os.read(reader, 65536).decode().splitlines()
        self.assertEqual([line.split(": ")[1] for line in lines], ["early", "late"])
        self.assertEqual(vars(streams), before)


class _NoWarnings:
    """Stands for the module ``warnings``, which a `LogBeginner` takes over."""

    showwarning = staticmethod(lambda *_: None)
