from __future__ import annotations

import dataclasses
import itertools

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.control.grammar import (
    MAX_LINE,
    MAX_LINES,
    CommandReader,
    encode_answer,
    encode_command,
    mirror_command,
    parse_answer,
    parse_converge,
    parse_export,
    parse_max_bps,
    parse_mirror,
)
from flexmigrate.errors import CommandError
from flexmigrate.migration.request import (
    MAX_BPS,
    USUAL_CONNECTIONS,
    Action,
    ConvergeConfig,
    ConvergeRule,
    MirrorRequest,
    TLSConfig,
)
from flexmigrate.net.address import Address
from flexmigrate.telemetry.units import MAX_SECONDS, format_seconds, parse_seconds

DESTINATION = Address.tcp("10.0.0.2", 10809)


def read(*pieces: bytes, end: bool = True) -> list[list[str]]:
    reader = CommandReader()
    commands = [command for piece in pieces for command in reader.receive(piece)]
    return commands + (reader.finish() if end else [])


class ReaderTests(SynchronousTestCase):
    def check(self, wire: bytes, expected: list[list[str]]) -> None:
        """Whole, byte by byte, and cut in two at every place."""
        self.assertEqual(read(wire), expected)
        self.assertEqual(read(*(wire[n : n + 1] for n in range(len(wire)))), expected)
        for cut in range(len(wire)):
            self.assertEqual(read(wire[:cut], wire[cut:]), expected, cut)

    def test_an_empty_line_ends_a_command(self) -> None:
        self.check(b"acl\n10.0.0.1\n::1\n\n", [["acl", "10.0.0.1", "::1"]])
        self.assertEqual(read(b"status\n", end=False), [])
        self.assertEqual(read(b"status\n\n", end=False), [["status"]])

    def test_the_end_of_input_ends_a_command(self) -> None:
        self.check(b"status\n", [["status"]])
        self.check(b"status", [["status"]])
        self.check(b"mirror\n10.0.0.2\n108", [["mirror", "10.0.0.2", "108"]])

    def test_several_commands(self) -> None:
        self.check(b"status\n\nbreak\n\nacl\n", [["status"], ["break"], ["acl"]])

    def test_carriage_returns_are_tolerated(self) -> None:
        self.check(b"acl\r\n::1\r\n\r\nstatus\r\n\r\n", [["acl", "::1"], ["status"]])

    def test_an_empty_command_is_seen(self) -> None:
        self.check(b"\nstatus\n\n", [[], ["status"]])

    def test_nothing_is_no_command(self) -> None:
        self.check(b"", [])

    def test_names_of_files_need_not_be_utf8(self) -> None:
        self.check(b"x\n/\xff\n\n", [["x", "/\udcff"]])
        self.assertEqual(encode_command(["x", "/\udcff"]), b"x\n/\xff\n\n")

    def test_a_long_line_is_refused_before_its_end_is_seen(self) -> None:
        longest = b"x" * MAX_LINE
        self.assertEqual(read(longest + b"\n"), [[longest.decode()]])
        for wire in (longest + b"x", longest + b"x\n\n"):
            with self.assertRaisesRegex(CommandError, f"more than {MAX_LINE} bytes"):
                CommandReader().receive(wire)

    def test_a_command_of_too_many_lines_is_refused(self) -> None:
        self.assertEqual(len(read(b"x\n" * MAX_LINES)[0]), MAX_LINES)
        with self.assertRaisesRegex(CommandError, f"more than {MAX_LINES} lines"):
            CommandReader().receive(b"x\n" * (MAX_LINES + 1))

    @given(st.binary())
    def test_garbage_gives_commands_or_the_refusal_and_nothing_else(self, wire: bytes) -> None:
        for command in read(wire):
            for line in command:
                self.assertTrue(line)
                self.assertNotIn("\n", line)

    @given(
        st.lists(
            st.text(
                st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1
            ),
            min_size=1,
        )
    )
    def test_what_is_encoded_is_read_back(self, lines: list[str]) -> None:
        self.assertEqual(read(encode_command(lines), end=False), [lines])


class EncodeCommandTests(SynchronousTestCase):
    def test_an_argument_cannot_smuggle_a_second_command(self) -> None:
        for smuggled in ("::1\n\nmirror", "::1\r", ""):
            with self.subTest(smuggled=smuggled), self.assertRaises(CommandError):
                encode_command(["acl", smuggled])

    def test_what_the_server_would_refuse_is_not_sent(self) -> None:
        for lines in ([], ["x"] * (MAX_LINES + 1), ["x" * (MAX_LINE + 1)]):
            with self.assertRaises(CommandError):
                encode_command(lines)


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


class MirrorTests(SynchronousTestCase):
    def test_what_is_left_out(self) -> None:
        self.assertEqual(parse_mirror(["10.0.0.2", "10809"]), MirrorRequest(DESTINATION))

    def test_each_action(self) -> None:
        for word, action in (
            ("exit", Action.EXIT),
            ("unlink", Action.UNLINK),
            ("nothing", Action.NOTHING),
        ):
            request = parse_mirror(["10.0.0.2", "10809", word])
            self.assertEqual(request, MirrorRequest(DESTINATION, action))

    def test_everything(self) -> None:
        self.assertEqual(
            parse_mirror(["10.0.0.2", "10809", "unlink", "10.0.0.1", "1000"]),
            MirrorRequest(DESTINATION, Action.UNLINK, bind="10.0.0.1", max_bps=1000),
        )

    def test_a_unix_socket(self) -> None:
        self.assertEqual(
            parse_mirror(["/run/dest", "0", "exit"]), MirrorRequest(Address.unix("/run/dest"))
        )

    def test_binding_to_any_address_is_not_binding(self) -> None:
        for wildcard in ("0.0.0.0", "::"):
            request = parse_mirror(["10.0.0.2", "10809", "exit", wildcard, "5"])
            self.assertEqual(request, MirrorRequest(DESTINATION, max_bps=5))

    def test_the_lines_are_those_of_flexnbd(self) -> None:
        self.assertEqual(
            mirror_command(MirrorRequest(DESTINATION)), ["mirror", "10.0.0.2", "10809", "exit"]
        )
        bound = MirrorRequest(DESTINATION, bind="10.0.0.1")
        self.assertEqual(mirror_command(bound)[4:], ["10.0.0.1"])
        limited = MirrorRequest(DESTINATION, max_bps=7)
        self.assertEqual(mirror_command(limited)[4:], ["0.0.0.0", "7"])

    def test_each_mistake_is_quoted(self) -> None:
        good = ["10.0.0.2", "10809", "exit", "10.0.0.1", "1"]
        for place, bad in (
            (0, "localhost"),
            (1, "0"),
            (1, "65536"),
            (2, "proxy"),
            (3, "eth0"),
            (4, "fast"),
            (4, "-1"),
            (4, str(MAX_BPS + 1)),
        ):
            words = [*good[:place], bad, *good[place + 1 :]]
            with self.subTest(bad=bad), self.assertRaises(CommandError) as caught:
                parse_mirror(words)
            self.assertIn(repr(bad), str(caught.exception))

    def test_too_few_or_too_many_arguments(self) -> None:
        for arguments in ([], ["10.0.0.2"], ["10.0.0.2", "1", "exit", "::", "1", "more"]):
            with self.assertRaisesRegex(CommandError, "mirror takes ADDR PORT"):
                parse_mirror(arguments)

    def test_settings_behind_any_number_of_arguments(self) -> None:
        arguments = ["10.0.0.2", "10809", "unlink", "10.0.0.1", "5"]
        for count in range(2, 6):
            request = parse_mirror([*arguments[:count], "export=a"])
            plain = parse_mirror(arguments[:count])
            self.assertEqual(request, dataclasses.replace(plain, export="a"), count)

    def test_settings_come_in_any_order(self) -> None:
        settings = [
            "export=a",
            "remote-export=b",
            "tls=on",
            "tls-certificates=/c",
            "tls-hostname=d",
            "connections=7",
        ]
        expected = MirrorRequest(
            DESTINATION,
            export="a",
            remote_export="b",
            tls=TLSConfig("on", "/c", hostname="d"),
            connections=7,
        )
        self.assertEqual(parse_mirror(mirror_command(expected)[1:]), expected)
        for order in itertools.permutations(settings):
            self.assertEqual(parse_mirror(["10.0.0.2", "10809", *order]), expected, order)

    def test_of_connections_there_are_some_and_not_too_many(self) -> None:
        there = ["10.0.0.2", "10809"]
        self.assertEqual(parse_mirror(there).connections, USUAL_CONNECTIONS)
        for text in ("0", "17", "", "-1", "two", "\u0663"):
            with self.assertRaises(CommandError) as raised:
                parse_mirror([*there, f"connections={text}"])
            self.assertIn(f"connections: {text!r}", str(raised.exception))

    def test_what_was_sent_is_dropped_or_not(self) -> None:
        there = ["10.0.0.2", "10809"]
        request = parse_mirror([*there, "drop-cache=yes"])
        self.assertTrue(request.drop_cache)
        self.assertEqual(parse_mirror(mirror_command(request)[1:]), request)
        for same in (there, [*there, "drop-cache=no"]):
            self.assertFalse(parse_mirror(same).drop_cache)
        with self.assertRaisesRegex(CommandError, "drop-cache: 'perhaps'"):
            parse_mirror([*there, "drop-cache=perhaps"])

    def test_a_value_is_all_behind_the_first_equals_sign(self) -> None:
        lines = ["/run/a=b", "0", "export=c=d", "tls=require", "tls-certificates=/e=f/g=h"]
        self.assertEqual(
            parse_mirror(lines),
            MirrorRequest(
                Address.unix("/run/a=b"), export="c=d", tls=TLSConfig("require", "/e=f/g=h")
            ),
        )

    def test_an_empty_name_is_not_no_name(self) -> None:
        arguments = ["10.0.0.2", "10809"]
        self.assertEqual(parse_mirror([*arguments, "export="]).export, "")
        self.assertIsNone(parse_mirror(arguments).export)

    def test_a_setting_that_there_is_not_or_that_is_said_twice(self) -> None:
        for wrong in (["fly=1"], ["export=a", "export=a"], ["tls=on", "fly=1"], ["exports=a"]):
            with self.assertRaises(CommandError) as caught:
                parse_mirror(["10.0.0.2", "10809", *wrong])
            self.assertIn(repr(wrong[-1]), str(caught.exception))

    def test_an_argument_behind_a_setting(self) -> None:
        with self.assertRaisesRegex(CommandError, "'unlink' can't be said here"):
            parse_mirror(["10.0.0.2", "10809", "export=a", "unlink"])

    def test_a_setting_alone_is_no_command(self) -> None:
        with self.assertRaisesRegex(CommandError, "mirror takes ADDR PORT"):
            parse_mirror(["export=a"])

    def test_what_is_wrong_about_tls(self) -> None:
        for settings, text in (
            (["tls=yes", "tls-certificates=/c"], "tls: 'yes'"),
            (["tls=on"], "tls=on needs tls-certificates"),
            (["tls=require", "tls-certificates="], "tls-certificates: '' is not a path"),
            (["tls=on", "tls-certificates=c"], "tls-certificates: 'c' has to begin with /"),
            (["tls-certificates=/c"], "tls-certificates: .* nothing is encrypted"),
            (["tls=off", "tls-certificates=/c"], "nothing is encrypted"),
            (["tls-hostname=h"], "tls-hostname: .* nothing is encrypted"),
        ):
            with self.assertRaisesRegex(CommandError, text):
                parse_mirror(["10.0.0.2", "10809", *settings])

    def test_what_flexnbd_does_not_know_is_only_sent_where_it_is_wanted(self) -> None:
        request = MirrorRequest(DESTINATION, max_bps=7, export="a", tls=TLSConfig("on", "/c"))
        self.assertEqual(
            mirror_command(request)[4:],
            ["0.0.0.0", "7", "export=a", "tls=on", "tls-certificates=/c"],
        )

    @given(
        st.builds(
            MirrorRequest,
            st.one_of(
                st.builds(Address.tcp, st.ip_addresses().map(str), st.integers(1, 65535)),
                st.just(Address.unix("/run/dest")),
            ),
            st.sampled_from(Action),
            st.none() | st.sampled_from(["10.0.0.1", "2001:db8::1"]),
            st.integers(0, MAX_BPS),
            st.none() | NAMES,
            NAMES,
            st.just(TLSConfig())
            | st.builds(
                TLSConfig,
                st.sampled_from(["on", "require"]),
                NAMES.map("/".__add__),
                st.just(False),
                st.none() | NAMES,
            ),
        )
    )
    def test_what_is_asked_for_is_understood(self, request: MirrorRequest) -> None:
        name, *arguments = mirror_command(request)
        self.assertEqual(name, "mirror")
        self.assertEqual(parse_mirror(arguments), request)


class ExportTests(SynchronousTestCase):
    """Commands about one export: ``status``, ``break``, ``mirror_max_bps``."""

    def test_none_is_said(self) -> None:
        self.assertEqual(parse_export([]), ([], None))
        self.assertEqual(parse_export(["5"]), (["5"], None))

    def test_one_is_said(self) -> None:
        self.assertEqual(parse_export(["export=a=b"]), ([], "a=b"))
        self.assertEqual(parse_export(["5", "export="]), (["5"], ""))

    def test_what_else_is_refused(self) -> None:
        for wrong in (["tls=on"], ["export=a", "export=b"], ["export=a", "5"]):
            with self.assertRaisesRegex(CommandError, "can't be said here"):
                parse_export(wrong)


class SecondsTests(SynchronousTestCase):
    def test_each_unit(self) -> None:
        for text, seconds in (
            ("0", 0.0),
            ("10", 10.0),
            ("2.5", 2.5),
            ("100ms", 0.1),
            ("0.5ms", 0.0005),
            ("3s", 3.0),
            ("1.5min", 90.0),
        ):
            self.assertAlmostEqual(parse_seconds(text), seconds)

    def test_what_is_no_time(self) -> None:
        for text in ("", "s", "-1", "+1", "1h", "1 s", ".5", "1.", "1e3", "nan", "inf", "\u0661"):
            with self.assertRaisesRegex(ValueError, "is not a time"):
                parse_seconds(text)

    def test_bounds(self) -> None:
        self.assertEqual(parse_seconds(f"{MAX_SECONDS:.0f}"), MAX_SECONDS)
        with self.assertRaisesRegex(ValueError, "from 0s to 86400s"):
            parse_seconds("86401")
        with self.assertRaisesRegex(ValueError, "from 100ms to"):
            parse_seconds("99ms", 0.1)

    @given(st.one_of(st.floats(0, MAX_SECONDS), st.floats(0, 1e-3)))
    def test_what_is_said_is_read_back(self, seconds: float) -> None:
        self.assertLess(abs(parse_seconds(format_seconds(seconds)) - seconds), 1e-9)


class ConvergeTests(SynchronousTestCase):
    def test_what_a_mirror_says_of_it(self) -> None:
        config = ConvergeConfig("force", max_downtime=0.05, max_park=2.0, timeout=30.0)
        request = MirrorRequest(DESTINATION, converge=config)
        self.assertEqual(
            mirror_command(request)[4:],
            ["converge=force", "max-downtime=50ms", "max-park=2s", "converge-timeout=30s"],
        )
        self.assertEqual(parse_mirror(mirror_command(request)[1:]), request)

    def test_the_usual_is_not_said(self) -> None:
        self.assertEqual(len(mirror_command(MirrorRequest(DESTINATION))), 4)

    @given(
        st.sampled_from(["throttle", "wait", "force"]),
        st.integers(0, 100),
        st.integers(100, 10_000),
        st.integers(0, 10_000),
    )
    def test_whatever_is_said_is_read_back(
        self, rule: ConvergeRule, downtime: int, park: int, timeout: int
    ) -> None:
        config = ConvergeConfig(rule, downtime / 1000, park / 1000)
        if rule == "force":
            config = dataclasses.replace(config, timeout=timeout / 1000)
        request = parse_mirror(mirror_command(MirrorRequest(DESTINATION, converge=config))[1:])
        self.assertEqual(request.converge.rule, rule)
        for name in ("max_downtime", "max_park", "timeout"):
            said, meant = getattr(request.converge, name), getattr(config, name)
            self.assertAlmostEqual(said, meant)

    def test_a_change_changes_what_it_says(self) -> None:
        change, export = parse_converge(["max-park=3", "export=vm7"])
        self.assertEqual(export, "vm7")
        self.assertEqual(
            change.of(ConvergeConfig("wait", 0.5)), ConvergeConfig("wait", 0.5, max_park=3.0)
        )

    def test_what_makes_no_sense_is_refused_by_name(self) -> None:
        for said, named in (
            (["converge=slow"], "converge: 'slow' is none of"),
            (["max-park=0"], "max-park: '0' is not from 100ms"),
            (["max-downtime=11"], "max-downtime 11s is more than max-park 10s"),
            (["max-downtime=200ms", "max-park=100ms"], "200ms is more than max-park 100ms"),
            (["converge-timeout=5"], "converge-timeout means nothing with converge=throttle"),
            (["converge-timeout=x", "converge=force"], "converge-timeout: 'x'"),
        ):
            with self.assertRaisesRegex(CommandError, named):
                parse_mirror(["10.0.0.2", "10809", *said])

    def test_a_change_of_nothing_is_refused(self) -> None:
        for arguments in ([], ["export=a"], ["force"], ["force", "max-park=1"]):
            with self.assertRaisesRegex(CommandError, "converge takes settings: converge, max-"):
                parse_converge(arguments)


class MaxBpsTests(SynchronousTestCase):
    def test_a_number(self) -> None:
        self.assertEqual(parse_max_bps(["0"]), 0)
        self.assertEqual(parse_max_bps([str(MAX_BPS)]), MAX_BPS)

    def test_not_one_number(self) -> None:
        for arguments in ([], ["1", "2"], ["-1"], ["1K"], ["x"]):
            with self.assertRaises(CommandError):
                parse_max_bps(arguments)


class AnswerTests(SynchronousTestCase):
    def test_code_and_text(self) -> None:
        self.assertEqual(encode_answer(0, "Mirror started"), b"0: Mirror started\n")
        self.assertEqual(parse_answer(b"0: Mirror started\n"), (0, "Mirror started"))
        self.assertEqual(parse_answer(b"10: unknown command"), (10, "unknown command"))
        self.assertEqual(parse_answer(b"0: "), (0, ""))

    def test_an_answer_is_one_line_whatever_its_text(self) -> None:
        encoded = encode_answer(1, "no\n0: pid=1\x1b[2J\u2028 more")
        self.assertEqual(encoded, b"1: no 0: pid=1 [2J more\n")

    def test_what_is_no_answer(self) -> None:
        for line in (b"", b"hello", b"x: y", b": y", b"-1: y"):
            with self.assertRaisesRegex(CommandError, "makes no sense"):
                parse_answer(line)
