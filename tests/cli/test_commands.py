from __future__ import annotations

import dataclasses
import re

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.commands import COMMANDS, parse, parser_of
from flexmigrate.config import (
    CallConfig,
    Config,
    ExportConfig,
    ListenConfig,
    ReadConfig,
    ServeConfig,
    WriteConfig,
)
from flexmigrate.control.grammar import MAX_BPS, MirrorRequest, parse_mirror
from flexmigrate.errors import UsageError
from flexmigrate.net.address import Address
from flexmigrate.options import Flag, parse_bytes

HERE = (Address.tcp("10.0.0.1", 10809),)
DISK = (ExportConfig("", "disk"),)
SERVE = "--addr 10.0.0.1 --port 10809 --file disk"
THERE = "--addr 10.0.0.2 --port 10809"


def said(line: str) -> Config:
    name, *words = line.split()
    return parse(name, words, f"flexmigrate {name}")


class CommandLineTestCase(SynchronousTestCase):
    def assert_wrong(self, line: str, *named: str) -> None:
        """The line is refused, with a text that names each of *named*."""
        with self.assertRaises(UsageError) as caught:
            said(line)
        for each in named:
            self.assertIn(each, str(caught.exception))


class ServeTests(CommandLineTestCase):
    def test_the_least(self) -> None:
        self.assertEqual(said(f"serve {SERVE}"), ServeConfig(HERE, DISK))

    def test_everything(self) -> None:
        self.assertEqual(
            said(
                f"serve {SERVE} --sock /run/s --default-deny --killswitch --export vm7"
                " --read-only --verbose 10.0.0.0/8 ::1"
            ),
            ServeConfig(
                places=HERE,
                exports=(ExportConfig("vm7", "disk"),),
                default_export="vm7",
                sock="/run/s",
                acl=("10.0.0.0/8", "::1"),
                default_deny=True,
                killswitch=True,
                read_only=True,
                verbosity=1,
            ),
        )

    def test_flexnbds_short_options(self) -> None:
        self.assertEqual(
            said("serve -l 10.0.0.1 -p 10809 -f disk -s /run/s -d -k -q"),
            said(f"serve {SERVE} --sock /run/s --default-deny --killswitch --quiet"),
        )

    def test_options_and_entries_come_in_any_order(self) -> None:
        self.assertEqual(
            said("serve 10.0.0.0/8 -l 10.0.0.1 ::1 -p 10809 -f disk"),
            said(f"serve {SERVE} 10.0.0.0/8 ::1"),
        )

    def test_a_unix_socket_has_no_port(self) -> None:
        self.assertEqual(
            said("serve -l /run/nbd -f disk"),
            ServeConfig((Address.unix("/run/nbd"),), DISK),
        )
        self.assert_wrong("serve -l /run/nbd -p 1 -f disk", "--port 1", "no port")

    def test_the_last_of_verbose_and_quiet_wins(self) -> None:
        for words, level in (("", 0), ("-v", 1), ("-q", -1), ("-v -q", -1), ("-q -v -v", 1)):
            self.assertEqual(said(f"serve {SERVE} {words}").verbosity, level, words)

    def test_what_is_required(self) -> None:
        self.assert_wrong("serve -p 1 -f disk", "--addr is required")
        self.assert_wrong("serve -l ::1 -f disk", "--port is required with --addr ::1")
        self.assert_wrong("serve -l ::1 -p 1", "--file is required")

    def test_each_mistake_is_named_with_its_option_and_value(self) -> None:
        self.assert_wrong("serve -l here -p 1 -f disk", "--addr", "'here'")
        self.assert_wrong("serve -l ::1 -p 65536 -f disk", "--port", "'65536'")
        self.assert_wrong(f"serve {SERVE} 10.0.0.300", "ACL_ENTRY", "'10.0.0.300'")
        self.assert_wrong(f"serve {SERVE} --sock /{'x' * 108}", "--sock", "107 bytes")
        self.assert_wrong(f"serve {SERVE} --export {'x' * 4097}", "--export", "4096 bytes")
        self.assert_wrong("serve -l ::1 -p 1 --file=", "--file", "''")

    def test_the_oldstyle_handshake_has_no_export_names(self) -> None:
        self.assertEqual(said(f"serve {SERVE} --oldstyle"), ServeConfig(HERE, DISK, oldstyle=True))
        self.assert_wrong(f"serve {SERVE} --oldstyle --export x", "--export x", "--oldstyle")

    def test_an_abbreviation_is_not_guessed(self) -> None:
        self.assert_wrong(f"serve {SERVE} --kill", "--kill")

    def test_an_option_without_its_value(self) -> None:
        self.assert_wrong("serve -l ::1 -f disk --port", "--port", "expected one argument")


class ListenTests(CommandLineTestCase):
    def listen(self, words: str) -> ListenConfig:
        config = said(f"listen {words}")
        assert isinstance(config, ListenConfig)
        return config

    def test_the_least(self) -> None:
        self.assertEqual(self.listen(SERVE), ListenConfig(HERE, "disk"))

    def test_everything(self) -> None:
        self.assertEqual(
            self.listen(
                f"{SERVE} -s /run/s -d --oldstyle --rebind-addr 10.0.0.9 --rebind-port 10810"
                " --coverage any -v 10.0.0.2"
            ),
            ListenConfig(
                places=HERE,
                file="disk",
                sock="/run/s",
                acl=("10.0.0.2",),
                default_deny=True,
                oldstyle=True,
                rebind=Address.tcp("10.0.0.9", 10810),
                coverage="any",
                verbosity=1,
            ),
        )

    def test_what_is_left_out_of_the_rebind_address_is_as_in_the_other(self) -> None:
        for words, rebind in (
            ("--rebind-addr 10.0.0.9", Address.tcp("10.0.0.9", 10809)),
            ("--rebind-port 1", Address.tcp("10.0.0.1", 1)),
            ("--rebind-addr /run/nbd", Address.unix("/run/nbd")),
        ):
            self.assertEqual(self.listen(f"{SERVE} {words}").rebind, rebind)

    def test_a_rebind_address_that_is_not_whole(self) -> None:
        on_unix = "listen -l /run/nbd -f disk"
        self.assert_wrong(f"{on_unix} --rebind-addr ::1", "--rebind-port is required", "::1")
        self.assert_wrong(f"{on_unix} --rebind-port 1", "--rebind-port 1", "no port")
        any_port = "listen -l ::1 -p 0 -f disk"
        self.assert_wrong(f"{any_port} --rebind-addr ::2", "--rebind-port is required")

    def test_clients_could_not_find_a_port_that_the_kernel_chooses(self) -> None:
        self.assert_wrong(f"listen {SERVE} --rebind-port 0", "--rebind-port", "'0'")

    def test_a_coverage_that_there_is_not(self) -> None:
        self.assert_wrong(f"listen {SERVE} --coverage half", "--coverage", "'half'")


class MirrorTests(CommandLineTestCase):
    def request(self, words: str) -> MirrorRequest:
        config = said(f"mirror {words} --sock /run/s")
        assert isinstance(config, CallConfig)
        self.assertEqual((config.sock, config.lines[0]), ("/run/s", "mirror"))
        return parse_mirror(list(config.lines[1:]))

    def test_the_least_is_what_flexnbd_sends(self) -> None:
        self.assertEqual(
            said(f"mirror {THERE} -s /run/s"),
            CallConfig("/run/s", ("mirror", "10.0.0.2", "10809", "exit")),
        )

    def test_unlink(self) -> None:
        self.assertEqual(self.request(f"{THERE} -u").action.value, "unlink")

    def test_bind_and_limit(self) -> None:
        request = self.request(f"{THERE} -b 10.0.0.1 -m 10M")
        self.assertEqual((request.bind, request.max_bps), ("10.0.0.1", 10 << 20))
        self.assertEqual(self.request(f"{THERE} --max-bps 1k").max_bps, 1024)

    def test_a_unix_socket(self) -> None:
        self.assertEqual(self.request("-l /run/dest -u").address, Address.unix("/run/dest"))

    def test_binding_to_any_address_is_not_binding(self) -> None:
        self.assertIsNone(self.request(f"{THERE} --bind 0.0.0.0").bind)

    def test_a_bind_address_that_cannot_reach_the_destination(self) -> None:
        self.assert_wrong(f"mirror {THERE} -s /s -b ::1", "--bind ::1", "10.0.0.2", "IPv6")
        self.assert_wrong("mirror -l /run/d -s /s -b ::1", "--bind ::1", "UNIX socket")
        self.assert_wrong(f"mirror {THERE} -s /s -b eth0", "--bind", "'eth0'")

    def test_a_port_to_connect_to_is_not_zero(self) -> None:
        self.assert_wrong("mirror -l 10.0.0.2 -p 0 -s /s", "--port", "'0'")

    def test_a_limit_that_is_none(self) -> None:
        self.assert_wrong(f"mirror {THERE} -s /s -m fast", "--max-bps", "'fast'")
        self.assert_wrong(f"mirror {THERE} -s /s -m {MAX_BPS + 1}", "--max-bps", str(MAX_BPS))


class CallTests(CommandLineTestCase):
    def test_the_lines_sent(self) -> None:
        for line, lines in (
            ("status -s /s", ("status",)),
            ("break -s /s", ("break",)),
            ("acl -s /s", ("acl",)),
            ("acl -s /s 10.0.0.1 ::/0", ("acl", "10.0.0.1", "::/0")),
            ("mirror-max-bps 2K -s /s", ("mirror_max_bps", "2048")),
            ("mirror-max-bps -s /s 0", ("mirror_max_bps", "0")),
        ):
            self.assertEqual(said(line), CallConfig("/s", lines), line)

    def test_the_socket_is_required(self) -> None:
        for name in ("status", "break", "acl", "mirror-max-bps 1", f"mirror {THERE}"):
            self.assert_wrong(name, "--sock is required")

    def test_a_bad_entry_is_not_even_sent(self) -> None:
        self.assert_wrong("acl -s /s 10.0.0.1 there", "ACL_ENTRY", "'there'")

    def test_the_new_limit(self) -> None:
        self.assert_wrong("mirror-max-bps -s /s", "N")
        self.assert_wrong("mirror-max-bps -s /s 1Q", "N:", "'1Q'")
        self.assert_wrong("mirror-max-bps -s /s 1 2", "2")

    def test_words_where_there_are_none(self) -> None:
        self.assert_wrong("status -s /s now", "now")


class TransferTests(CommandLineTestCase):
    def test_read(self) -> None:
        self.assertEqual(
            said(f"read {THERE} --from 4096 --size 1M"),
            ReadConfig(Address.tcp("10.0.0.2", 10809), 4096, 1 << 20),
        )

    def test_write_with_short_options(self) -> None:
        self.assertEqual(
            said("write -l ::1 -p 1 -F 0 -S 512 -b ::2 -v"),
            WriteConfig(Address.tcp("::1", 1), 0, 512, bind="::2", verbosity=1),
        )

    def test_reading_is_not_writing(self) -> None:
        read, write = (said(f"{name} {THERE} -F 0 -S 1") for name in ("read", "write"))
        self.assertNotEqual(read, write)

    def test_what_is_required(self) -> None:
        self.assert_wrong(f"read {THERE} --size 1", "--from is required")
        self.assert_wrong(f"read {THERE} --from 1", "--size is required")

    def test_a_range_that_is_none(self) -> None:
        self.assert_wrong(f"read {THERE} --from 0 --size 0", "--size", "'0'")
        self.assert_wrong(f"read {THERE} --from -1 --size 1", "--from")
        self.assert_wrong(f"read {THERE} --from {2**63} --size 1", "--from", str(2**63))


class BytesTests(SynchronousTestCase):
    @given(st.integers(0, 2**20), st.sampled_from(["", "K", "M", "G", "T"]))
    def test_suffixes_are_powers_of_1024(self, number: int, suffix: str) -> None:
        expected = number * 1024 ** " KMGT".index(suffix or " ")
        self.assertEqual(parse_bytes(f"{number}{suffix}"), expected)
        self.assertEqual(parse_bytes(f"{number}{suffix.lower()}"), expected)

    def test_what_is_no_number_of_bytes_is_quoted(self) -> None:
        for text in ("", "K", "1KK", "1.5M", "0x10", "-1", "1_0", " 1", "1 K", "٣"):
            with self.assertRaisesRegex(ValueError, re.escape(repr(text))):
                parse_bytes(text)


class TableTests(SynchronousTestCase):
    """Things that hold for every command and every option, the next one too."""

    def test_the_synopsis_names_every_option(self) -> None:
        for name, command in COMMANDS.items():
            for option in command.options:
                self.assertIn(f"--{option.long}", command.synopsis, name)
            self.assertEqual(len(re.findall("--", command.synopsis)), len(command.options), name)

    def test_every_option_that_may_be_left_out_tells_its_default(self) -> None:
        for name, command in COMMANDS.items():
            for option in command.options:
                optional = f"[--{option.long}" in command.synopsis
                self.assertEqual("default:" in option.help, optional, (name, option.long))

    def test_the_help_shows_every_option(self) -> None:
        for name, command in COMMANDS.items():
            shown = parser_of(name, f"flexmigrate {name}").format_help()
            for option in command.options:
                self.assertIn(f"--{option.long}", shown)
                # argparse breaks the lines where it likes.
                self.assertIn("".join(option.help.split()), "".join(shown.split()))

    def test_no_letter_means_two_things_in_one_command(self) -> None:
        for name, command in COMMANDS.items():
            letters = [option.short for option in command.options if option.short] + ["v", "q", "h"]
            self.assertEqual(len(letters), len(set(letters)), name)

    def test_a_letter_means_the_same_in_every_command(self) -> None:
        meanings: dict[str, set[tuple[str, bool]]] = {}
        for command in COMMANDS.values():
            for option in command.options:
                if option.short:
                    meaning = (option.long, isinstance(option, Flag))
                    meanings.setdefault(option.short, set()).add(meaning)
        self.assertEqual({letter for letter, found in meanings.items() if len(found) > 1}, set())

    def test_a_configuration_cannot_be_changed(self) -> None:
        for line in (f"serve {SERVE}", "status -s /s", f"read {THERE} -F 0 -S 1"):
            with self.assertRaises(dataclasses.FrozenInstanceError):
                said(line).verbosity = 1  # type: ignore[misc]  # that is the test
