from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.cli.commands import COMMANDS
from flexmigrate.cli.option import Flag
from flexmigrate.cli.parsing import file_settings, parse, parser_of
from flexmigrate.cli.requests import (
    CallConfig,
    Config,
    ReadConfig,
    StatusConfig,
    WaitConfig,
    WriteConfig,
)
from flexmigrate.cli.values import parse_bytes
from flexmigrate.config import ExportConfig, ListenConfig, Place, ServeConfig
from flexmigrate.control.grammar import encode_command, parse_converge, parse_mirror
from flexmigrate.errors import UsageError
from flexmigrate.log.settings import LogSettings
from flexmigrate.migration.request import (
    MAX_BPS,
    USUAL_CONNECTIONS,
    ConvergeConfig,
    MirrorRequest,
    TLSConfig,
)
from flexmigrate.net.address import Address

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
                log=LogSettings(1),
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
            self.assertEqual(said(f"serve {SERVE} {words}").log.verbosity, level, words)

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

        self.assert_wrong(f"serve {SERVE} --oldstyle --export x=y", "--export x=y", "--oldstyle")

    def test_how_many_clients(self) -> None:
        self.assertEqual(
            said(f"serve {SERVE} --max-clients 2"), ServeConfig(HERE, DISK, max_clients=2)
        )
        for wrong in ("0", "100001", "-1", "many"):
            self.assert_wrong(f"serve {SERVE} --max-clients={wrong}", "--max-clients", wrong)

    def test_an_abbreviation_is_not_guessed(self) -> None:
        self.assert_wrong(f"serve {SERVE} --kill", "--kill")

    def test_an_option_without_its_value(self) -> None:
        self.assert_wrong("serve -l ::1 -f disk --port", "--port", "expected one argument")


class ExportsTests(CommandLineTestCase):
    def serve(self, words: str) -> ServeConfig:
        config = said(f"serve --addr 10.0.0.1 --port 10809 {words}")
        assert isinstance(config, ServeConfig)
        return config

    def exports(self, words: str) -> list[tuple[str, str]]:
        return [(each.name, each.file) for each in self.serve(words).exports]

    def test_one_file_has_no_name_or_the_one_that_is_given(self) -> None:
        self.assertEqual(self.exports("--file disk"), [("", "disk")])
        self.assertEqual(self.exports("--file disk --export a"), [("a", "disk")])

    def test_each_name_has_its_file(self) -> None:
        self.assertEqual(self.exports("--export a=1 --export b=2"), [("a", "1"), ("b", "2")])

    def test_the_file_of_its_own_option_comes_first(self) -> None:
        self.assertEqual(self.exports("--export b=2 --file 1"), [("", "1"), ("b", "2")])
        self.assertEqual(self.exports("--export b=2 --export a -f 1"), [("a", "1"), ("b", "2")])

    def test_a_path_may_have_an_equals_sign_and_a_name_may_not(self) -> None:
        self.assertEqual(self.exports("--export a=/dev/x=y"), [("a", "/dev/x=y")])

    def test_an_empty_name_is_one_too(self) -> None:
        self.assertEqual(self.exports("--export =1 --export b=2"), [("", "1"), ("b", "2")])

    def test_the_first_is_the_default(self) -> None:
        self.assertEqual(self.serve("--export a=1 --export b=2").default_export, "a")
        self.assertEqual(self.serve("--file 1 --export b=2").default_export, "")
        self.assertEqual(self.serve("--file 1 --export a").default_export, "a")

    def test_an_export_without_a_name_is_the_default_wherever_it_stands(self) -> None:
        self.assertEqual(self.serve("--export a=1 --export =2").default_export, "")

    def test_another_default(self) -> None:
        config = self.serve("--export a=1 --export b=2 --default-export b")
        self.assertEqual(config.default_export, "b")

    def test_a_default_that_would_hide_an_export(self) -> None:
        wrong = f"serve {SERVE} --export b=2 --default-export b"
        self.assert_wrong(wrong, "--default-export b", "without a name")

    def test_a_default_that_there_is_not(self) -> None:
        self.assert_wrong(f"serve {SERVE} --default-export b", "--default-export b", "no such")

    def test_a_name_twice(self) -> None:
        place = "serve -l ::1 -p 1"
        self.assert_wrong(f"{place} --export a=1 --export a=2", "--export a", "twice")
        self.assert_wrong(f"{place} -f 1 --export =2", "--export", "twice")

    def test_a_name_without_a_file(self) -> None:
        place = "serve -l ::1 -p 1"
        self.assert_wrong(f"{place} --export a", "--file is required")
        self.assert_wrong(f"{place} --export a=", "--export a=", "file is missing")
        self.assert_wrong(
            f"{place} -f 1 --export a --export b", "--export b", "the file is missing"
        )

    def test_a_name_too_long(self) -> None:
        self.assert_wrong(f"serve -l ::1 -p 1 --export {'x' * 4097}=1", "--export", "4096 bytes")

    def test_names_are_told_unless_that_is_switched_off(self) -> None:
        self.assertTrue(self.serve("--file disk").listable)
        self.assertFalse(self.serve("--file disk --no-list").listable)


class EndpointTests(CommandLineTestCase):
    def places(self, words: str, command: str = "serve") -> tuple[Place, ...]:
        config = said(f"{command} --file disk {words}")
        assert isinstance(config, (ServeConfig, ListenConfig))
        return config.places

    def test_instead_of_an_address(self) -> None:
        self.assertEqual(self.places("--endpoint tcp:10809"), ("tcp:10809",))

    def test_beside_an_address_which_comes_first(self) -> None:
        words = "--endpoint unix:/run/nbd --endpoint tcp6:10809 --addr 10.0.0.1 --port 10809"
        for command in ("serve", "listen"):
            self.assertEqual(
                self.places(words, command), (*HERE, "unix:/run/nbd", "tcp6:10809"), command
            )

    def test_a_description_is_kept_as_it_was_written(self) -> None:
        described = r"tcp:10809:interface=\:\:1:backlog=5"
        self.assertEqual(self.places(f"--endpoint {described}"), (described,))

    def test_what_is_no_description(self) -> None:
        for wrong in ("10809", ":10809", "/run/nbd", "[::1]:1"):
            self.assert_wrong(f"serve -f disk --endpoint {wrong}", "--endpoint", wrong)

    def test_a_port_that_would_not_be_opened(self) -> None:
        self.assert_wrong("serve -f disk --endpoint tcp:1 -p 2", "--port 2", "--addr")

    def test_somewhere_to_listen_is_required(self) -> None:
        self.assert_wrong("serve -f disk", "--addr is required")
        self.assert_wrong("listen -f disk", "--addr is required")

    def test_a_rebind_address_is_not_read_from_a_description(self) -> None:
        listen = "listen -f disk --endpoint tcp:1"
        self.assert_wrong(f"{listen} --rebind-port 2", "--rebind-addr is required", "--endpoint")
        self.assert_wrong(f"{listen} --rebind-addr ::1", "--rebind-port is required")
        config = said(f"{listen} --rebind-addr ::1 --rebind-port 2")
        assert isinstance(config, ListenConfig)
        self.assertEqual(config.rebind, Address.tcp("::1", 2))


class TLSTests(CommandLineTestCase):
    def tls(self, line: str) -> TLSConfig:
        config = said(line)
        assert not isinstance(config, CallConfig)
        return config.tls

    def test_without_a_word_there_is_none(self) -> None:
        for line in (f"serve {SERVE}", f"listen {SERVE}", f"read {THERE} -F 0 -S 1"):
            self.assertEqual(self.tls(line), TLSConfig(), line)
            self.assertEqual(self.tls(f"{line} --tls off"), TLSConfig(), line)

    def test_a_server(self) -> None:
        for name in ("serve", "listen"):
            for rule in ("on", "require"):
                line = f"{name} {SERVE} --tls {rule} --tls-certificates d"
                self.assertEqual(self.tls(line), TLSConfig(rule, "d"))  # type: ignore[arg-type]
            verified = self.tls(f"{line} --tls-verify-peer")
            self.assertEqual((verified.certificates, verified.verify_peer), ("d", True))

    def test_who_wants_certificates_of_clients_lets_nobody_in_without_tls(self) -> None:
        for name in ("serve", "listen"):
            line = f"{name} {SERVE} --tls on --tls-certificates d --tls-verify-peer"
            self.assert_wrong(line, "--tls-verify-peer", "--tls on", "--tls require")

    def test_a_client(self) -> None:
        for name in ("read", "write"):
            line = f"{name} {THERE} -F 0 -S 1 --tls require --tls-certificates d"
            self.assertEqual(self.tls(line), TLSConfig("require", "d"))
            named = self.tls(f"{line} --tls-hostname disks.example")
            self.assertEqual(named, TLSConfig("require", "d", hostname="disks.example"))

    def test_certificates_are_required(self) -> None:
        for line in (f"serve {SERVE}", f"mirror {THERE} -s /s", f"read {THERE} -F 0 -S 1"):
            self.assert_wrong(f"{line} --tls on", "--tls-certificates is required", "--tls on")

    def test_who_speaks_of_certificates_is_not_left_without_encryption(self) -> None:
        for name in (f"serve {SERVE}", f"mirror {THERE} -s /s", "read nbd://h/ -F 0 -S 1"):
            for off in ("", "--tls off"):
                line = f"{name} --tls-certificates d {off}"
                self.assert_wrong(line, "--tls-certificates d", "nothing is encrypted")
        self.assert_wrong(f"listen {SERVE} --tls-verify-peer", "--tls-verify-peer", "encrypted")
        self.assert_wrong(f"mirror {THERE} -s /s --tls-hostname h", "--tls-hostname h", "encrypted")

    def test_each_side_has_its_own_options(self) -> None:
        on = "--tls on --tls-certificates d"
        self.assert_wrong(f"serve {SERVE} {on} --tls-hostname h", "--tls-hostname")
        self.assert_wrong(f"mirror {THERE} -s /s {on} --tls-verify-peer", "--tls-verify-peer")

    def test_a_rule_that_there_is_not(self) -> None:
        self.assert_wrong(f"serve {SERVE} --tls yes --tls-certificates d", "--tls", "'yes'")

    def test_the_oldstyle_handshake_has_no_tls(self) -> None:
        for name in ("serve", "listen"):
            line = f"{name} {SERVE} --oldstyle --tls on --tls-certificates d"
            self.assert_wrong(line, "--tls on", "--oldstyle")


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
                f"{SERVE} -s /run/s -d --export vm7 --rebind-addr 10.0.0.9 --rebind-port 10810"
                " --coverage any -v 10.0.0.2"
            ),
            ListenConfig(
                places=HERE,
                file="disk",
                export="vm7",
                sock="/run/s",
                acl=("10.0.0.2",),
                default_deny=True,
                rebind=Address.tcp("10.0.0.9", 10810),
                coverage="any",
                log=LogSettings(1),
            ),
        )

    def test_the_oldstyle_handshake_has_no_export_names(self) -> None:
        self.assertTrue(self.listen(f"{SERVE} --oldstyle").oldstyle)
        self.assert_wrong(f"listen {SERVE} --oldstyle --export x", "--export x", "--oldstyle")

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

    def test_which_export_and_its_name_at_the_destination(self) -> None:
        request = self.request(f"{THERE} --export vm7 --remote-export disk=7")
        self.assertEqual((request.export, request.remote_export), ("vm7", "disk=7"))
        request = self.request(THERE)
        self.assertEqual((request.export, request.remote_export), (None, ""))

    def test_how_many_connections(self) -> None:
        self.assertEqual(self.request(THERE).connections, USUAL_CONNECTIONS)
        self.assertEqual(self.request(f"{THERE} --connections 1").connections, 1)
        for text in ("0", "17", "some"):
            self.assert_wrong(f"mirror {THERE} -s /s --connections {text}", "--connections", text)

    def test_whether_what_was_sent_is_dropped(self) -> None:
        self.assertFalse(self.request(THERE).drop_cache)
        self.assertTrue(self.request(f"{THERE} --drop-cache").drop_cache)

    def test_the_default_export_can_be_named(self) -> None:
        config = said(f"mirror {THERE} -s /s --export=")
        assert isinstance(config, CallConfig)
        self.assertIn("export=", config.lines)

    def test_the_longest_name_can_be_said(self) -> None:
        name = "x" * 4096
        config = said(f"mirror {THERE} -s /s --export {name} --remote-export {name}")
        assert isinstance(config, CallConfig)
        self.assertTrue(encode_command(list(config.lines)))

    def test_tls(self) -> None:
        request = self.request(
            f"{THERE} -m 5 --tls require --tls-certificates /etc/a=b --tls-hostname disks.example"
        )
        self.assertEqual(request.tls, TLSConfig("require", "/etc/a=b", hostname="disks.example"))
        self.assertEqual(request.max_bps, 5)

    def test_a_folder_is_found_from_the_servers_working_directory(self) -> None:
        request = self.request(f"{THERE} --tls on --tls-certificates pki")
        self.assertEqual(request.tls.certificates, str(Path.cwd() / "pki"))

    def test_a_port_to_connect_to_is_not_zero(self) -> None:
        self.assert_wrong("mirror -l 10.0.0.2 -p 0 -s /s", "--port", "'0'")

    def test_a_limit_that_is_none(self) -> None:
        self.assert_wrong(f"mirror {THERE} -s /s -m fast", "--max-bps", "'fast'")
        self.assert_wrong(f"mirror {THERE} -s /s -m {MAX_BPS + 1}", "--max-bps", str(MAX_BPS))


class ConvergeTests(CommandLineTestCase):
    def converge(self, words: str) -> ConvergeConfig:
        config = said(f"mirror {THERE} -s /s {words}")
        assert isinstance(config, CallConfig)
        return parse_mirror(list(config.lines[1:])).converge

    def test_each_option(self) -> None:
        self.assertEqual(self.converge(""), ConvergeConfig())
        self.assertEqual(self.converge("--max-downtime 50ms"), ConvergeConfig(max_downtime=0.05))
        self.assertEqual(self.converge("--max-park 1min"), ConvergeConfig(max_park=60.0))
        self.assertEqual(self.converge("--converge wait"), ConvergeConfig("wait"))
        self.assertEqual(
            self.converge("--converge force --converge-timeout 5"),
            ConvergeConfig("force", timeout=5.0),
        )

    def test_what_makes_no_sense(self) -> None:
        mirror = f"mirror {THERE} -s /s"
        self.assert_wrong(f"{mirror} --max-downtime soon", "--max-downtime", "'soon'", "100ms")
        self.assert_wrong(f"{mirror} --max-park 0", "--max-park", "'0'", "100ms")
        self.assert_wrong(f"{mirror} --converge fast", "--converge", "'fast'", "'throttle'")
        self.assert_wrong(f"{mirror} --converge-timeout 5", "converge-timeout", "it is for force")
        self.assert_wrong(
            f"{mirror} --max-downtime 2 --max-park 1s", "max-downtime 2s", "max-park 1s"
        )

    def test_a_change_while_it_runs(self) -> None:
        for words, lines in (
            ("force", ("converge=force", "converge-timeout=0s")),
            ("force --converge-timeout 9", ("converge=force", "converge-timeout=9s")),
            ("wait", ("converge=wait",)),
            ("--max-downtime 2", ("max-downtime=2s",)),
            ("throttle --max-park 1min --export a", ("converge=throttle", "max-park=60s")),
        ):
            config = said(f"converge -s /s {words}")
            assert isinstance(config, CallConfig)
            self.assertEqual(config.lines[: len(lines) + 1], ("converge", *lines))
            parse_converge(list(config.lines[1:]))

    def test_a_change_that_makes_no_sense(self) -> None:
        self.assert_wrong("converge -s /s", "nothing to change")
        self.assert_wrong("converge -s /s faster", "'faster'", "'throttle'")
        self.assert_wrong("converge -s /s wait --converge-timeout 1", "--converge-timeout 1")


class CallTests(CommandLineTestCase):
    def test_the_lines_sent(self) -> None:
        for line, lines in (
            ("break -s /s", ("break",)),
            ("acl -s /s", ("acl",)),
            ("acl -s /s 10.0.0.1 ::/0", ("acl", "10.0.0.1", "::/0")),
            ("mirror-max-bps 2K -s /s", ("mirror_max_bps", "2048")),
            ("mirror-max-bps -s /s 0", ("mirror_max_bps", "0")),
            ("break -s /s --export a=b", ("break", "export=a=b")),
            ("mirror-max-bps 1 -s /s --export vm7", ("mirror_max_bps", "1", "export=vm7")),
        ):
            self.assertEqual(said(line), CallConfig("/s", lines), line)

    def test_status(self) -> None:
        for line, config in (
            ("status -s /s", StatusConfig("/s", ("status",))),
            ("status -s /s --export vm7", StatusConfig("/s", ("status", "export=vm7"))),
            ("status -s /s --export=", StatusConfig("/s", ("status", "export="))),
            ("status -s /s --json", StatusConfig("/s", ("status",), json=True)),
            ("status -s /s --watch", StatusConfig("/s", ("status",), watch=True)),
        ):
            self.assertEqual(said(line), config, line)

    def test_wait(self) -> None:
        self.assertEqual(said("wait -s /s"), WaitConfig("/s"))
        self.assertEqual(said("wait -s /s --export vm7"), WaitConfig("/s", export="vm7"))
        mirror = ("mirror", "10.0.0.2", "10809", "exit", "export=vm7")
        self.assertEqual(
            said(f"mirror {THERE} -s /s --export vm7 --wait"), WaitConfig("/s", (mirror,), "vm7")
        )

    def test_the_socket_is_required(self) -> None:
        commands = ("status", "wait", "break", "acl", "mirror-max-bps 1", "converge force")
        for name in (*commands, f"mirror {THERE}"):
            self.assert_wrong(name, "--sock is required")

    def test_a_bad_entry_is_not_even_sent(self) -> None:
        self.assert_wrong("acl -s /s 10.0.0.1 there", "ACL_ENTRY", "'there'")

    def test_the_new_limit(self) -> None:
        self.assert_wrong("mirror-max-bps -s /s", "N")
        self.assert_wrong("mirror-max-bps -s /s 1Q", "N:", "'1Q'")
        self.assert_wrong("mirror-max-bps -s /s 1 2", "2")

    def test_the_access_list_is_all_the_servers(self) -> None:
        self.assert_wrong("acl -s /s --export vm7", "--export")

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
            WriteConfig(Address.tcp("::1", 1), 0, 512, bind="::2", log=LogSettings(1)),
        )

    def test_a_uri_says_where(self) -> None:
        uri = "nbd+unix:///vm7?socket=/run/nbd"
        self.assertEqual(said(f"read {uri} -F 0 -S 1"), ReadConfig(uri, 0, 1))
        self.assertEqual(said(f"write -F 0 -S 1 {uri}"), WriteConfig(uri, 0, 1))

    def test_a_uri_and_an_address(self) -> None:
        for option in ("-l 10.0.0.1", "-p 1", "-b 10.0.0.1"):
            self.assert_wrong(f"read nbd://h/x -F 0 -S 1 {option}", option.split()[1], "nbd://h/x")

    def test_one_uri_at_most(self) -> None:
        self.assert_wrong("read nbd://h/x nbd://h/y -F 0 -S 1", "nbd://h/y")

    def test_neither_a_uri_nor_an_address(self) -> None:
        self.assert_wrong("read -F 0 -S 1", "--addr is required")

    def test_a_uri_may_require_tls(self) -> None:
        for uri in ("nbds://h/x", "NBDS://h/x", "nbds+unix:///x?socket=/s"):
            config = said(f"read {uri} -F 0 -S 1 --tls-certificates d")
            self.assertEqual(config, ReadConfig(uri, 0, 1, tls=TLSConfig("require", "d")))
            self.assert_wrong(f"read {uri} -F 0 -S 1", "--tls-certificates is required", uri)
            for rule in ("off", "on"):
                line = f"read {uri} -F 0 -S 1 --tls {rule} --tls-certificates d"
                self.assert_wrong(line, f"--tls {rule}", "requires")

    def test_a_uri_that_may_do_without_tls(self) -> None:
        config = said("read nbd://h/x -F 0 -S 1 --tls on --tls-certificates d")
        self.assertEqual(config, ReadConfig("nbd://h/x", 0, 1, tls=TLSConfig("on", "d")))

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

    def test_listen_has_the_options_of_serve(self) -> None:
        """What is received is served as serve would serve it."""
        for known in (
            {name: set(COMMANDS[name].options) for name in ("serve", "listen")},
            {name: set(keys) for name, keys in file_settings().items()},
        ):
            serve, listen = (
                {option if isinstance(option, str) else option.long for option in known[name]}
                for name in ("serve", "listen")
            )
            self.assertEqual(serve - listen, {"default-export"})
            self.assertEqual(listen - serve, {"rebind-addr", "rebind-port", "coverage"})

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
                said(line).size = 1  # type: ignore[misc]  # that is the test
