from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.status import Status, format_status, parse_status

IDLE = Status(
    pid=4711,
    size=1 << 30,
    has_control=True,
    clients_allowed=True,
    num_clients=2,
    is_mirroring=False,
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
        names = [field.name for field in dataclasses.fields(Status)]
        told = format_status(Status(**dict.fromkeys(names, 1)))  # type: ignore[arg-type]  # names
        self.assertEqual(list(parse_status(told)), names)

    def test_every_field_says_what_it_means(self) -> None:
        for field in dataclasses.fields(Status):
            self.assertTrue(field.metadata["doc"], field.name)
            units = ("", "bytes", "seconds", "bytes/second", "connections", "exports")
            self.assertIn(field.metadata["unit"], units)

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
