"""The arithmetic of the benchmarks, and what is made of it: tables, a plot, what clients say."""

from __future__ import annotations

import json
from xml.etree import ElementTree

from twisted.trial.unittest import SynchronousTestCase

from bench.clients import Load, read_report
from bench.figures import Spread, at_least, at_most, ratio_at_least, ratio_at_most, ratios
from bench.moving import Recorded
from bench.plot import Bar, draw
from bench.report import PER_SECOND, Log, Row, data, listed, markdown, table
from bench.servers import KINDS, OURS
from bench.serving import order
from bench.stage import Unmeasured
from bench.tasks import COLD, IDLE


class Ratios(SynchronousTestCase):
    def test_a_ratio_is_to_the_best_of_the_others_in_the_same_round(self) -> None:
        ours, others = [30.0, 60.0], [[10.0, 40.0], [20.0, 30.0]]
        self.assertEqual(ratios(ratio_at_least(1), ours, others), [30 / 20, 60 / 40])

    def test_where_less_is_better_the_best_is_the_least(self) -> None:
        self.assertEqual(ratios(ratio_at_most(1), [5.0], [[10.0], [20.0]]), [0.5])

    def test_a_round_without_a_figure_of_ours_or_of_all_others_has_no_ratio(self) -> None:
        ours, others = [None, 4.0, 6.0], [[1.0, None, None], [1.0, None, 2.0]]
        self.assertEqual(ratios(ratio_at_least(1), ours, others), [3.0])

    def test_a_ratio_to_nothing_is_none(self) -> None:
        self.assertEqual(ratios(ratio_at_most(1), [0.0], [[0.0]]), [])

    def test_an_aim_is_met_at_its_limit(self) -> None:
        self.assertTrue(at_least(2.0).is_met(2.0))
        self.assertFalse(at_least(2.0).is_met(1.9))
        self.assertTrue(at_most(2.0).is_met(2.0))
        self.assertFalse(at_most(2.0).is_met(2.1))

    def test_a_spread_is_the_median_and_the_outermost(self) -> None:
        self.assertEqual(Spread.of([9.0, 1.0, 2.0]), Spread(2.0, 1.0, 9.0))


class Order(SynchronousTestCase):
    def test_each_server_does_each_task_once_a_round(self) -> None:
        steps = list(order([COLD, IDLE], KINDS, rounds=3))
        self.assertEqual(len(steps), len(set(steps)))
        self.assertEqual(len(steps), 3 * 2 * len(KINDS))

    def test_each_time_another_server_is_the_first(self) -> None:
        firsts = [kind for _, _, kind in order([COLD], KINDS, rounds=4)][:: len(KINDS)]
        self.assertEqual(firsts, list(KINDS))

    def test_all_servers_do_a_task_before_the_next_one_begins(self) -> None:
        tasks = [task.name for _, task, _ in order([COLD, IDLE], KINDS, rounds=1)]
        self.assertEqual(tasks, [COLD.name] * len(KINDS) + [IDLE.name] * len(KINDS))


class Reports(SynchronousTestCase):
    def setUp(self) -> None:
        self.row = Row("idle", "a title", PER_SECOND, "rate", (IDLE,), ratio_at_least(1.5))
        self.log = Log([OURS.name, "one", "other"], rounds=3)

    def add(self, contestant: str, *figures: float) -> None:
        for number, figure in enumerate(figures):
            self.log.add(number, IDLE.name, contestant, {"rate": figure})

    def cells(self) -> list[str]:
        return table(self.log, [self.row])[1]

    def test_a_row_has_medians_their_spread_the_ratio_and_whether_that_is_enough(self) -> None:
        self.add(OURS.name, 2000, 1000, 1500)
        self.add("one", 1000, 1000, 1000)
        self.add("other", 10, 10, 10)
        self.assertEqual(
            self.cells(),
            [
                *("a title", "requests/s", "1,500 (1,000 to 2,000)", "1,000 (1,000 to 1,000)"),
                *("10 (10 to 10)", "1.50 (1.00 to 2.00)", "ratio ≥ 1.5", "yes"),
            ],
        )

    def test_what_is_missing_refers_to_the_note_that_tells_why(self) -> None:
        self.add(OURS.name, 10)
        self.log.miss(IDLE.name, "other", "it is\nnot there")
        self.assertEqual(self.cells()[2:6], ["10", "-", "[1]", ""])
        self.assertEqual(self.cells()[-1], "?")
        self.assertIn("[1] other, idle-64: it is not there", markdown(self.log, [self.row]))

    def test_no_folder_of_this_machine_is_told(self) -> None:
        self.log.miss("a", "b", "$ /opt/bin/fio --uri=nbd://127.0.0.1:1/disk?tls=/opt/x y")
        self.assertEqual(
            list(self.log.missed.values()), ["$ fio --uri=nbd://127.0.0.1:1/disk?tls=x y"]
        )

    def test_what_a_program_says_is_no_markup(self) -> None:
        self.log.miss(IDLE.name, "other", r"*no* `such_file` C:\x")
        self.assertIn(r"\*no\* \`such\_file\` C:\\x", listed(self.log, [self.row]))

    def test_of_several_sources_it_is_the_largest(self) -> None:
        row = Row("both", "", PER_SECOND, "rate", (IDLE, COLD), at_most(100))
        self.log.add(0, IDLE.name, OURS.name, {"rate": 70})
        self.log.add(0, COLD.name, OURS.name, {"rate": 90})
        self.assertEqual(self.log.figures(row, OURS.name), [90, None, None])
        self.assertEqual(table(self.log, [row])[1][-2:], ["≤ 100 requests/s", "yes"])

    def test_a_note_is_told_once(self) -> None:
        self.log.note("mind this")
        self.log.note("mind this")
        self.assertEqual(markdown(self.log, [self.row]).count("mind this"), 1)

    def test_the_two_kinds_of_table_have_the_same_cells(self) -> None:
        self.add(OURS.name, 1, 2, 3)
        of_markdown = markdown(self.log, [self.row]).splitlines()[2].strip("| ").split(" | ")
        of_the_page = [
            line.strip(" *").removeprefix("-").strip()
            for line in listed(self.log, [self.row]).splitlines()
            if line.startswith(("   * -", "     -"))
        ]
        self.assertEqual(of_the_page[len(of_markdown) :], of_markdown)

    def test_the_json_has_every_figure_of_every_round(self) -> None:
        self.add(OURS.name, 1, 2, 3)
        (row,) = json.loads(json.dumps(data(self.log, [self.row])))["rows"]
        self.assertEqual(row["figures"][OURS.name], [1, 2, 3])
        self.assertEqual(row["figures"]["one"], [None, None, None])

    def test_the_median_of_each_figure_of_a_source(self) -> None:
        for number, rate in enumerate((1.0, 5.0, 2.0)):
            self.log.add(number, "a", "one", {"rate": rate, "cpu": 10 * rate})
        self.assertEqual(self.log.medians("a", "one"), {"rate": 2.0, "cpu": 20.0})
        self.assertEqual(self.log.medians("a", "two"), {})


class Plots(SynchronousTestCase):
    def test_it_is_xml_with_every_title_and_every_figure(self) -> None:
        bars = [Bar("less < more", {"ours": 1.25, "theirs": 1.0}, 1.3), Bar("far", {"ours": 9}, 1)]
        plot = ElementTree.fromstring(draw(["ours", "theirs"], bars))
        texts = "".join(plot.itertext())
        for text in ("less < more", "ours: 1.25", "theirs: 1.00", "far", "ours: 9.00"):
            self.assertIn(text, texts)


class OfFio(SynchronousTestCase):
    def report(self, **job: object) -> str:
        way = {
            "total_ios": 10,
            "iops": 5.0,
            "bw_bytes": 20480,
            "clat_ns": {"percentile": {"99.000000": 2_000_000}},
        }
        none = {"total_ios": 0, "iops": 0.0, "bw_bytes": 0, "clat_ns": {}}
        used = {"usr_cpu": 20.0, "sys_cpu": 15.0}
        jobs = [{"error": 0, **used, "read": way, "write": none, **job}] * 2
        return "fio: connected to NBD server\n" + json.dumps({"jobs": jobs})

    def test_all_connections_are_summed_up_and_each_has_its_rate(self) -> None:
        seen = read_report(self.report())
        self.assertEqual((seen.requests, seen.rates, seen.rate), (20, (5.0, 5.0), 10.0))
        self.assertEqual((seen.bandwidth, seen.p99, seen.busy), (40960, 0.002, 0.7))

    def test_an_error_is_no_measurement(self) -> None:
        self.assertRaises(Unmeasured, read_report, self.report(error=5))

    def test_no_answer_is_no_measurement(self) -> None:
        nothing = {"total_ios": 0, "iops": 0.0, "bw_bytes": 0}
        self.assertRaises(Unmeasured, read_report, self.report(read=nothing))

    def test_a_region_is_kept_to(self) -> None:
        options = Load("randread", 4096, 1, region=(8192, 4096)).options("nbd://host", 0.5)
        for option in ("--uri=nbd://host", "--runtime=500ms", "--offset=8192", "--size=4096"):
            self.assertIn(option, options)


class OfTheWriter(SynchronousTestCase):
    def test_the_rate_is_that_of_the_whole_hundredths_between(self) -> None:
        seen = Recorded({100: 7, 101: 2, 102: 4, 103: 9}, [])
        self.assertAlmostEqual(seen.rate(1.005, 1.031), 300)

    def test_no_time_is_no_measurement(self) -> None:
        self.assertRaises(Unmeasured, Recorded({}, []).rate, 1.001, 1.002)

    def test_the_longest_wait_is_one_that_touches_the_span(self) -> None:
        waits = [(0.0, 0.9), (1.0, 1.2), (1.9, 2.25), (3.0, 9.0)]
        seen = Recorded({}, [(*wait, False) for wait in waits])
        self.assertAlmostEqual(seen.longest_wait(1.0, 2.0), 0.35)

    def test_a_handover_is_waited_for_from_one_connection_to_the_next(self) -> None:
        seen = Recorded({}, [(0.0, 0.9, False), (1.0, 1.2, True), (1.1, 1.2, True)])
        self.assertAlmostEqual(seen.handed_over(), 0.2)
        self.assertEqual(Recorded({}, [(0.0, 0.9, False)]).handed_over(), 0.0)

    def test_without_a_long_wait_it_is_none(self) -> None:
        self.assertEqual(Recorded({}, []).longest_wait(1.0, 2.0), 0.0)
