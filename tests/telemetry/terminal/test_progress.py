"""What a migration looks like in each phase; and that no bar ever runs backwards."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.telemetry.terminal.progress import BAR, migration_lines, summary_line, topic_of
from flexmigrate.telemetry.terminal.server import server_lines

MIB = 1 << 20
SERVER = {"pid": 7, "size": 1 << 30, "has_control": True, "num_clients": 1, "is_mirroring": False}


def migration(phase: str, **more: Any) -> dict[str, Any]:
    fields = {"phase": phase, "attempt": 1, "pass": 1, "bytes_sent": 0, "speed": 0, **more}
    return {f"migration_{name}": value for name, value in fields.items()}


def headline(phase: str, **more: Any) -> str:
    return migration_lines(migration(phase, **more))[0]


class PhaseTests(SynchronousTestCase):
    def test_connecting(self) -> None:
        self.assertEqual(
            headline("dialling", address="192.0.2.2:10810"), "connecting to 192.0.2.2:10810"
        )

    def test_before_it_is_known_what_has_to_be_sent_there_is_no_bar(self) -> None:
        self.assertEqual(headline("copying"), "looking for data")

    def test_the_first_pass(self) -> None:
        self.assertEqual(
            headline("copying", pass_size=96 * MIB, pass_sent=24 * MIB, speed=2 * MIB),
            "copying [######------------------]  25 %   24.0 MiB of 96.0 MiB   about 36 s left",
        )

    def test_the_end_of_the_first_pass(self) -> None:
        # More is sent than there was: what was written into holes meanwhile, on the way.
        self.assertEqual(
            headline("copying", pass_size=MIB, pass_sent=2 * MIB, speed=MIB),
            "copying [########################] 100 %   1.00 MiB of 1.00 MiB",
        )
        self.assertTrue(
            headline("copying", pass_size=MIB, pass_sent=1, speed=2 * MIB).endswith(
                "under 1 s left"
            )
        )

    def test_after_it_there_is_no_bar_but_what_parking_would_cost(self) -> None:
        line = headline(
            *("converging",),
            **{"pass": 3, "bytes_left": 12 * MIB, "verdict": "converging"},
            downtime=0.31,
            allowed_downtime=0.1,
        )
        self.assertEqual(
            line,
            "converging   pass 3: 12.0 MiB left"
            "   parking clients would take 0.310 s, may take 0.100 s",
        )

    def test_what_does_not_converge_is_called_so(self) -> None:
        line = headline("converging", bytes_left=MIB, verdict="not converging")
        self.assertTrue(line.startswith("NOT CONVERGING: clients change as much as is sent"))

    def test_parked(self) -> None:
        for phase in ("parked", "settling", "committing", "a phase of a newer server"):
            self.assertEqual(
                headline(phase, parked=0.012),
                f"handing over ({phase}); clients have been parked for 0.012 s",
            )

    def test_another_attempt_is_called_so(self) -> None:
        self.assertTrue(headline("copying", attempt=3).startswith("attempt 3: looking"))
        self.assertEqual(
            headline("waiting", attempt=2, error="the destination is gone"),
            "attempt 2 failed, another follows: the destination is gone",
        )

    def test_how_quick(self) -> None:
        status = migration("copying", bytes_sent=MIB, speed=MIB, speed_limit=2 * MIB)
        self.assertEqual(
            migration_lines(status)[1],
            "sent 1.00 MiB   sending 1.00 MiB/s (limit 2.00 MiB/s)",
        )
        status |= {"migration_dirty_rate": 0, "migration_write_limit": 4096}
        self.assertTrue(
            migration_lines(status)[1].endswith(
                "   clients change 0 B/s   clients are slowed to 4.00 KiB/s"
            )
        )

    def test_nothing_is_too_strange_to_be_shown(self) -> None:
        self.assertEqual(len(migration_lines({})), 2)
        self.assertEqual(len(migration_lines(migration("copying", pass_size="many"))), 2)

    @given(st.integers(1, 1 << 50), st.lists(st.integers(0, 1 << 51), min_size=2))
    def test_no_bar_runs_backwards_while_more_is_sent(self, size: int, sent: list[int]) -> None:
        shown = []
        for each in sorted(sent):
            line = headline("copying", pass_size=size, pass_sent=each, speed=1)
            match = re.search(r"\[(#*)-*\] +(\d+) %", line)
            assert match is not None
            shown.append((len(match[1]), int(match[2])))
        self.assertEqual(shown, sorted(shown))
        self.assertTrue(all(filled <= BAR and percent <= 100 for filled, percent in shown))

    def test_a_new_topic_is_another_phase_pass_attempt_or_decision(self) -> None:
        before = migration("converging", speed=1, bytes_left=1)
        same = migration("converging", speed=2, bytes_left=2)
        self.assertEqual(topic_of(before), topic_of(same))
        for other in ({"pass": 2}, {"attempt": 2}, {"verdict": "not converging"}):
            self.assertNotEqual(topic_of(before), topic_of(migration("converging", **other)))


class ServerTests(SynchronousTestCase):
    def test_at_rest(self) -> None:
        self.assertEqual(server_lines(SERVER), ["server 7: 1.00 GiB, 1 client; owns the image"])

    def test_with_a_migration(self) -> None:
        status = {
            **SERVER,
            "export": "vm",
            "is_mirroring": True,
            **migration("dialling", address="192.0.2.2:1"),
        }
        self.assertEqual(
            server_lines(status)[:3],
            [
                "server 7: export 'vm', 1.00 GiB, 1 client; owns the image",
                "migration to 192.0.2.2:1",
                "connecting to 192.0.2.2:1",
            ],
        )

    def test_after_one(self) -> None:
        summary = {
            "verdict": "broken",
            "reason": "broken off by the operator",
            "bytes_sent": MIB,
            "passes": 1,
            "duration": 2.0,
            "speed": MIB // 2,
            "parked": 0.0,
            "attempts": 2,
        }
        told = {f"last_migration_{name}": value for name, value in summary.items()}
        self.assertEqual(
            server_lines({**SERVER, **told})[1:],
            [f"last migration {summary_line(summary)}", "    because: broken off by the operator"],
        )
        self.assertEqual(
            summary_line(summary),
            "broken: 1.00 MiB in 1 pass, 2.0 s, 512 KiB/s; clients were parked for 0.000 s;"
            " 2 attempts",
        )

    def test_a_destination(self) -> None:
        for phase, line in (
            ("waiting", "waiting for a source"),
            ("receiving", "receiving: 1.00 MiB of 1.00 GiB in this attempt"),
            ("rebinding", "can't open the serving address for 3.0 s now: in use"),
            ("serving", "serving"),
        ):
            status = {
                **SERVER,
                "has_control": False,
                "listening_phase": phase,
                "covered_bytes": MIB,
                "rebind_seconds": 3,
                "rebind_error": "in use",
            }
            self.assertEqual(server_lines(status)[1], line)
