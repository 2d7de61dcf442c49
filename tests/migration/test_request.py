"""A request to migrate checks itself, and each of its settings is one row of a table."""

from __future__ import annotations

import dataclasses
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.cli.commands import COMMANDS
from flexmigrate.cli.options import SETTING_OPTIONS
from flexmigrate.control.grammar import mirror_command, parse_mirror
from flexmigrate.errors import UsageError
from flexmigrate.migration.request import (
    CONVERGE_SETTINGS,
    SETTINGS,
    ConvergeChange,
    ConvergeConfig,
    HandoverRule,
    MirrorRequest,
    TLSConfig,
    VerifyRule,
)
from flexmigrate.net.address import Address

THERE = Address.tcp("10.0.0.2", 10809)
TLS = TLSConfig("on", "/c")

# A value of each setting that isn't the usual one, with what it needs beside it.
OTHERS: dict[str, dict[str, Any]] = {
    "export": {"export": "a"},
    "remote_export": {"remote_export": "b"},
    "connections": {"connections": 7},
    "drop_cache": {"drop_cache": True},
    "retry_interval": {"retry_interval": 90.0},
    "handover": {"handover": HandoverRule.SESSION},
    "allow_old_peers": {"allow_old_peers": True},
    "verify": {"verify": VerifyRule.DIRTY},
    "tls.rule": {"tls": TLS},
    "tls.certificates": {"tls": TLS},
    "tls.hostname": {"tls": dataclasses.replace(TLS, hostname="h")},
    "report": {"report": "/r.json"},
    "converge.rule": {"converge": ConvergeConfig("wait")},
    "converge.max_downtime": {"converge": ConvergeConfig(max_downtime=0.05)},
    "converge.max_park": {"converge": ConvergeConfig(max_park=3.0)},
    "converge.timeout": {"converge": ConvergeConfig("force", timeout=5.0)},
}


class TableTests(SynchronousTestCase):
    def test_each_setting_reaches_the_request_by_the_socket(self) -> None:
        self.assertEqual({each.field for each in SETTINGS}, set(OTHERS))
        for setting in SETTINGS:
            request = MirrorRequest(THERE, **OTHERS[setting.field])
            said = mirror_command(request)
            self.assertIn(setting.line(setting.value_in(request)), said)
            self.assertEqual(parse_mirror(said[1:]), request)

    def test_each_setting_is_an_option_of_mirror(self) -> None:
        for setting in SETTINGS:
            option = SETTING_OPTIONS[setting.field]
            self.assertIn(option, COMMANDS["mirror"].options)
            self.assertIn(f"--{setting.name}", COMMANDS["mirror"].synopsis)
            self.assertEqual((option.long, option.help), (setting.name, setting.help))

    def test_no_two_have_one_name(self) -> None:
        for names in ([each.name for each in SETTINGS], [each.field for each in SETTINGS]):
            self.assertEqual(len(names), len(set(names)))

    def test_what_can_be_changed_is_what_a_change_has(self) -> None:
        fields = [each.name for each in dataclasses.fields(ConvergeChange)]
        self.assertEqual([each.own_field for each in CONVERGE_SETTINGS], fields)


class CheckTests(SynchronousTestCase):
    """A wrong value is refused where it is given, by the name of its setting."""

    def test_of_a_request(self) -> None:
        bad_tls: Any = "yes"
        wrong: dict[str, Any] = {
            "max-bps": {"max_bps": -1},
            "export": {"export": "x" * 4097},
            "remote-export": {"remote_export": b"x"},
            "connections": {"connections": 0},
            "drop-cache": {"drop_cache": "perhaps"},
            "retry-interval": {"retry_interval": 0.5},
            "handover": {"handover": "auto"},
            "allow-old-peers": {"allow_old_peers": 2},
            "verify": {"verify": "some"},
            "tls": {"tls": lambda: TLSConfig(bad_tls, "/c")},
            "tls-certificates": {"tls": TLSConfig("on", "certificates")},
            "tls-hostname": {"tls": TLSConfig("on", "/c", hostname="a\0b")},
            "report": {"report": "report.html"},
            "converge": {"converge": ConvergeConfig("slow")},  # type: ignore[arg-type]
            "max-downtime": {"converge": ConvergeConfig(max_downtime=-1.0)},
            "max-park": {"converge": ConvergeConfig(max_downtime=0.0, max_park=0.01)},
            "converge-timeout": {"converge": ConvergeConfig("force", timeout=1e9)},
        }
        self.assertEqual({*wrong}, {"max-bps", *(each.name for each in SETTINGS)})
        for name, values in wrong.items():
            with self.assertRaisesRegex(UsageError, f"^{name}[: ]"):
                made = {key: each() if callable(each) else each for key, each in values.items()}
                MirrorRequest(THERE, **made)

    def test_what_has_no_row_in_the_table(self) -> None:
        wrong: tuple[tuple[str, dict[str, Any]], ...] = (
            ("address='10.0.0.2:1'", {"address": "10.0.0.2:1"}),
            ("action='exit'", {"action": "exit"}),
            ("bind=10", {"bind": 10}),
            ("max_bps='5'", {"max_bps": "5"}),
            ("tls='on'", {"tls": "on"}),
            ("converge='force'", {"converge": "force"}),
            ("connections: 'None' is not", {"connections": None}),
        )
        for text, values in wrong:
            with self.assertRaisesRegex(ValueError, f"^{text}"):
                MirrorRequest(**{"address": THERE, **values})

    def test_a_number_is_no_text(self) -> None:
        with self.assertRaisesRegex(UsageError, "^connections: '4' is not a value"):
            MirrorRequest(THERE, connections="4")  # type: ignore[arg-type]

    def test_a_whole_number_of_seconds_is_one(self) -> None:
        request = MirrorRequest(THERE, converge=ConvergeConfig(max_park=3))
        self.assertIn("max-park=3s", mirror_command(request))

    def test_of_tls_as_a_whole(self) -> None:
        with self.assertRaisesRegex(UsageError, "tls=on needs tls-certificates"):
            MirrorRequest(THERE, tls=TLSConfig("on"))
        with self.assertRaisesRegex(UsageError, "tls-hostname: without tls"):
            MirrorRequest(THERE, tls=TLSConfig(hostname="h"))

    def test_of_convergence_as_a_whole(self) -> None:
        with self.assertRaisesRegex(UsageError, "max-downtime 20s is more than max-park 10s"):
            ConvergeConfig(max_downtime=20.0)

    def test_of_a_change(self) -> None:
        with self.assertRaisesRegex(UsageError, "^max-park: "):
            ConvergeChange(max_park=0.0)
        with self.assertRaisesRegex(UsageError, "^converge: "):
            ConvergeChange("slow")  # type: ignore[arg-type]
