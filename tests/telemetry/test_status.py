from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.telemetry.fields import documented, typed
from flexmigrate.telemetry.history import Summary
from flexmigrate.telemetry.status import Status, format_status, parse_status

IDLE = Status(
    pid=4711,
    size=1 << 30,
    has_control=True,
    clients_allowed=True,
    num_clients=2,
    is_mirroring=False,
)
SUMMARY = Summary(
    verdict="complete",
    reason=None,
    address="192.0.2.2:10810",
    duration=2.0,
    bytes_sent=1 << 30,
    speed=1 << 29,
    passes=3,
    attempts=1,
    parked=0.0125,
)


class FormatTests(SynchronousTestCase):
    def test_an_idle_server_tells_what_flexnbd_tells(self) -> None:
        self.assertEqual(
            format_status(IDLE),
            "pid=4711 size=1073741824 has_control=true clients_allowed=true num_clients=2"
            " is_mirroring=false",
        )

    def test_what_applies_is_told_even_if_it_is_zero_or_empty(self) -> None:
        told = format_status(
            dataclasses.replace(IDLE, migration_bytes_left=0, migration_error="")
        ).split()
        self.assertEqual(told[-2:], ["migration_bytes_left=0", "migration_error="])

    def test_every_field_is_told_under_its_own_name(self) -> None:
        names = [field.name for field in dataclasses.fields(Status) if field.name != "summary"]
        told = format_status(Status(**dict.fromkeys(names, 1)))  # type: ignore[arg-type]  # names
        self.assertEqual(list(parse_status(told)), names)

    def test_every_field_says_what_it_means(self) -> None:
        for field in documented(Status):
            self.assertTrue(field.doc, field.name)
            units = ("", "bytes", "seconds", "bytes/second", "connections", "exports")
            self.assertIn(field.unit, units)

    def test_the_last_migration_is_told_in_fields_of_its_own(self) -> None:
        told = parse_status(format_status(dataclasses.replace(IDLE, summary=SUMMARY)))
        self.assertEqual(told["last_migration_verdict"], "complete")
        self.assertEqual(told["last_migration_parked"], "0.0125")
        self.assertNotIn("last_migration_reason", told)
        names = {field.name for field in documented(Status)}
        self.assertLessEqual(told.keys(), names)

    def test_a_value_cannot_pretend_to_be_another_pair(self) -> None:
        liar = dataclasses.replace(IDLE, migration_error="gone is_mirroring=true\n0: pid=1 100%")
        told = format_status(liar)
        self.assertEqual(
            told.split()[-1],
            "migration_error=gone%20is_mirroring=true%0A0:%20pid=1%20100%25",
        )
        self.assertEqual(parse_status(told)["is_mirroring"], "false")
        self.assertEqual(parse_status(told)["migration_error"], liar.migration_error)

    @given(st.text(st.characters(exclude_categories=())))
    def test_every_text_survives_in_one_word(self, text: str) -> None:
        told = format_status(dataclasses.replace(IDLE, last_migration=text))
        self.assertTrue(told.isprintable())
        self.assertEqual(parse_status(told)["last_migration"], text)


class ParseTests(SynchronousTestCase):
    def test_flexnbds_answer_with_a_space_at_its_end(self) -> None:
        self.assertEqual(
            parse_status("pid=9635 is_mirroring=false "), {"pid": "9635", "is_mirroring": "false"}
        )

    def test_what_is_no_pair_is_quoted(self) -> None:
        for bad in ("pid", "=1"):
            with self.assertRaisesRegex(ValueError, f"'{bad}' is not"):
                parse_status(f"size=1 {bad}")

    def test_a_percent_sign_alone_is_refused(self) -> None:
        for bad in ("a%", "a%4", "a%zz", "%+1"):
            with self.assertRaisesRegex(ValueError, "two hexadecimal digits"):
                parse_status(f"key={bad}")


class TypedTests(SynchronousTestCase):
    def test_values_come_back_as_what_they_were(self) -> None:
        status = dataclasses.replace(
            IDLE, export="17", migration_pass=2, migration_parked=0.5, summary=SUMMARY
        )
        pairs = typed(parse_status(format_status(status)), Status)
        self.assertEqual(
            {name: pairs[name] for name in ("pid", "has_control", "export", "migration_parked")},
            {"pid": 4711, "has_control": True, "export": "17", "migration_parked": 0.5},
        )
        self.assertEqual(pairs["last_migration_duration"], 2.0)

    def test_what_is_not_known_or_makes_no_sense_stays_a_text(self) -> None:
        pairs = typed({"size": "big", "is_mirroring": "maybe", "later": "1"}, Status)
        self.assertEqual(pairs, {"size": "big", "is_mirroring": "maybe", "later": "1"})
