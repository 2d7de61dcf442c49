from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.telemetry.units import count_text, duration_text, rate_text, size_text


class UnitTests(SynchronousTestCase):
    def test_sizes_have_three_digits(self) -> None:
        for number, text in (
            *((0, "0 B"), (999, "999 B"), (1000, "0.98 KiB"), (4096, "4.00 KiB")),
            *((1 << 20, "1.00 MiB"), (999 << 20, "999 MiB"), (1000 << 20, "0.98 GiB")),
            *(((12 << 30) + (512 << 20), "12.5 GiB"), (1 << 40, "1.00 TiB")),
            (2**64, "16.0 EiB"),
        ):
            self.assertEqual(size_text(number), text)
        self.assertEqual(rate_text(1.5 * 2**20), "1.50 MiB/s")

    def test_durations_are_as_exact_as_people_want_them(self) -> None:
        for seconds, text in (
            *((0, "0.000 s"), (0.0123, "0.012 s"), (0.9994, "0.999 s"), (0.9996, "1.0 s")),
            *((9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 00 s")),
            *((200, "3 min 20 s"), (3599.6, "1 h 00 min"), (7500, "2 h 05 min")),
        ):
            self.assertEqual(duration_text(seconds), text)

    def test_one_is_not_many(self) -> None:
        self.assertEqual(count_text(1, "pass", "passes"), "1 pass")
        self.assertEqual(count_text(0, "pass", "passes"), "0 passes")
        self.assertEqual(count_text(2, "client"), "2 clients")
