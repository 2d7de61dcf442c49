"""The settings of a server: each is one row, and a wrong value is refused where it is given."""

from __future__ import annotations

import dataclasses
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.cli.commands import COMMANDS
from flexmigrate.cli.parsing import parse
from flexmigrate.config import ExportConfig, ListenConfig, ServeConfig, ServerConfig
from flexmigrate.errors import UsageError
from flexmigrate.log.settings import LogSettings
from flexmigrate.migration.request import TLSConfig
from flexmigrate.net.acl import AccessList
from flexmigrate.net.address import Address
from flexmigrate.net.polling import Poller
from flexmigrate.server.export import ExportDirectory
from flexmigrate.server.factory import NBDServerFactory
from flexmigrate.server.limits import Limits
from flexmigrate.settings import SERVER_SETTINGS, server_settings
from flexmigrate.wire.agreement import TLSMode

HERE = (Address.tcp("127.0.0.1", 10809),)
DISK = (ExportConfig("", "disk"),)

# Fields that have no row: several options make them together, or none does.
COMBINED = {"places", "acl", "tls", "log", "reread", "exports", "file", "rebind"}

# Wrong values of each field that has a row, and what is said of them beside the name and the value.
WRONG: dict[str, tuple[tuple[object, str], ...]] = {
    "default_export": (("other", "there is no such export"), (1, "must be a text")),
    "export": (("x" * 4097, "at most 4096 bytes"), (None, "must be a text")),
    "listable": (("no", "True or False"), (None, "True or False"), (0, "True or False")),
    "sock": (("", "path"), ("/" + "x" * 108, "107 bytes"), (b"/s", "must be a text")),
    "default_deny": (("yes", "True or False"),),
    "killswitch": ((120, "True or False"),),
    "oldstyle": (("yes", "True or False"),),
    "read_only": ((1, "True or False"),),
    "coverage": (("some", "neither 'full' nor 'any'"), (1, "must be a text")),
    "max_clients": (
        ("5", "a whole number"),
        (0, "from 1 to 100000"),
        (100001, "from 1 to 100000"),
        (-1, "from 1 to 100000"),
        (5.0, "a whole number"),
        (True, "a whole number"),
        (None, "a whole number"),
    ),
    "max_clients_per_host": (("5", "a whole number"), (-1, "from 1 to 100000")),
    "poll_seconds": (
        ("0", "a number"),
        (-0.1, "from 0 to 10000"),
        (0.02, "from 0 to 10000"),
        (float("nan"), "from 0 to 10000"),
    ),
    "allow_old_peers": (("yes", "True or False"),),
    "metrics": (("nowhere", "is not a server endpoint"), (9100, "Address or a text")),
    "web": (("nowhere", "is not a server endpoint"), (9100, "Address or a text")),
}


def made(command: str, **values: Any) -> ServerConfig:
    """Return a configuration of *command* with these values."""
    if command == "serve":
        return ServeConfig(**{"places": HERE, "exports": DISK, **values})
    return ListenConfig(**{"places": HERE, "file": "disk", **values})


class TableTests(SynchronousTestCase):
    def test_every_field_has_a_row_or_is_made_of_several_options(self) -> None:
        for command, kind in (("serve", ServeConfig), ("listen", ListenConfig)):
            fields = {each.name for each in dataclasses.fields(kind)}
            rows = [each.field for each in server_settings(command)]
            self.assertEqual(len(rows), len(set(rows)))
            self.assertEqual(fields - set(rows), COMBINED & fields)
            self.assertLessEqual(set(rows), fields)

    def test_every_row_is_an_option(self) -> None:
        for command in ("serve", "listen"):
            known = {each.long for each in COMMANDS[command].options}
            self.assertLessEqual({each.name for each in server_settings(command)}, known)


class CheckTests(SynchronousTestCase):
    def test_a_wrong_value_is_refused_by_its_name(self) -> None:
        self.assertEqual(set(WRONG), {each.field for each in SERVER_SETTINGS})
        for command in ("serve", "listen"):
            for setting in server_settings(command):
                for value, allowed in WRONG[setting.field]:
                    with self.assertRaises(UsageError) as caught:
                        made(command, **{setting.field: value})
                    text = str(caught.exception)
                    self.assertTrue(text.startswith(f"{setting.field}={value!r}: "), text)
                    self.assertIn(allowed, text)

    def test_a_limit_is_told_in_the_words_of_the_command_line(self) -> None:
        for field, option, value, word in (
            ("max_clients", "max-clients", 0, "0"),
            ("max_clients_per_host", "max-clients-per-host", 100001, "100001"),
            ("poll_seconds", "poll-us", 0.0100001e3, "10000100"),
        ):
            with self.assertRaises(UsageError) as by_program:
                made("serve", **{field: value})
            with self.assertRaises(UsageError) as by_option:
                line = ["-l", "::1", "-p", "1", "-f", "disk", f"--{option}={word}"]
                parse("serve", line, "flexmigrate serve")
            _, said = str(by_option.exception).split(": ", 1)
            self.assertTrue(str(by_program.exception).endswith(f": {said}"), said)

    def test_it_is_a_value_error_too(self) -> None:
        with self.assertRaises(ValueError):
            made("serve", max_clients=0)

    def test_of_what_has_no_row(self) -> None:
        wrong: tuple[tuple[str, str, object], ...] = (
            ("serve", "places", ()),
            ("serve", "places", "tcp:10809"),
            ("serve", "places", ("nowhere",)),
            ("listen", "places", (10809,)),
            ("serve", "acl", "10.0.0.0/8"),
            ("serve", "tls", "on"),
            ("listen", "log", "json"),
            ("serve", "reread", "settings.toml"),
            ("serve", "exports", ()),
            ("serve", "exports", ("disk",)),
            ("serve", "exports", DISK * 2),
            ("listen", "file", ""),
            ("listen", "file", None),
            ("listen", "rebind", "127.0.0.1:10809"),
            ("listen", "rebind", Address.tcp("127.0.0.1", 0)),
        )
        for command, field, value in wrong:
            with self.assertRaisesRegex(UsageError, f"^{field}"):
                made(command, **{field: value})
        with self.assertRaisesRegex(UsageError, "10.0.0.300"):
            made("serve", acl=("10.0.0.300",))

    def test_of_the_parts(self) -> None:
        def factory(**values: Any) -> NBDServerFactory:
            acl = AccessList([], default_deny=False)
            return NBDServerFactory(Clock(), ExportDirectory([]), acl, **values)

        kinds: tuple[tuple[Any, dict[str, Any], str], ...] = (
            (ExportConfig, {"name": "x" * 4097, "file": "f"}, "^name="),
            (ExportConfig, {"name": 1, "file": "f"}, "^name=1: it must be a text"),
            (ExportConfig, {"name": "", "file": ""}, "^file="),
            (TLSConfig, {"rule": "sometimes"}, "^tls: 'sometimes' is none of"),
            (TLSConfig, {"rule": True}, "^tls=True"),
            (TLSConfig, {"verify_peer": "yes"}, "^verify_peer='yes'"),
            (TLSConfig, {"certificates": 1}, "^certificates=1"),
            (LogSettings, {"verbosity": 2}, "^verbosity=2: it must be -1, 0 or 1"),
            (LogSettings, {"form": "xml"}, "^form='xml': it is none of 'text'"),
            (LogSettings, {"levels": (("a", "loud"),)}, "'loud' is none of debug"),
            (LogSettings, {"levels": [("a", "info")]}, "^levels="),
            (Limits, {"clients": 0}, "^clients=0: it must be from 1 to 100000"),
            (Limits, {"clients": "5"}, "^clients='5': it must be a whole number"),
            (Limits, {"host_clients": -1}, "^host_clients=-1"),
            (Limits, {"request_seconds": 0}, "^request_seconds=0: it must be more than 0"),
            (Limits, {"negotiation_seconds": None}, "^negotiation_seconds=None"),
            (factory, {"tls": TLSMode.ON}, "^tls_context=None: TLS 'on' needs certificates"),
            (factory, {"tls": "on"}, "^tls='on': it must be TLSMode"),
            (factory, {"limits": 5}, "^limits=5: it must be Limits or None"),
            (factory, {"style": "oldstyle"}, "^style='oldstyle': it must be HandshakeStyle"),
            (factory, {"default_export": None}, "^default_export=None: it must be a text"),
            (factory, {"poller": 200}, "^poller=200: it must be Poller or None"),
            (Poller, {"seconds": 0.02}, "^seconds=0.02: it must be from 0 to 0.01"),
            (Poller, {"seconds": "0"}, "^seconds='0': it must be a number"),
        )
        for kind, values, text in kinds:
            with self.assertRaisesRegex(UsageError, text):
                kind(**values)
