"""Reports as text: what stands in them, and that nothing in them can be more than text."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.telemetry.fields import documented
from flexmigrate.telemetry.history import History, Sample, Summary
from flexmigrate.telemetry.report.document import FORMAT, VERSION, as_json
from flexmigrate.telemetry.report.page import MOST_ROWS, as_html
from flexmigrate.telemetry.report.plot import HEIGHT, WIDTH, draw, rates, stage_of, stages
from flexmigrate.telemetry.report.subject import Subject
from flexmigrate.telemetry.states import SourceState

MIB = 1 << 20
SUBJECT = Subject("0.1", "/images/<vm>&.img", "", 64 * MIB, "exit", "2025-01-31T12:00:00+00:00")
SUMMARY = Summary("complete", None, "192.0.2.2:10810", 10.0, 80 * MIB, 8 * MIB, 2, 2, 0.02)


def sample(seconds: float, phase: str, **more: int | str | None) -> Sample:
    fields = {"attempt": 1, "pass_number": 1, "bytes_sent": int(seconds * 8 * MIB), **more}
    return Sample(seconds, phase, **fields)  # type: ignore[arg-type]  # by their names


def history() -> History:
    """A migration of 10 s, with an attempt that failed."""
    found = History()
    for change in (
        sample(0.0, "dialling", bytes_sent=0),
        sample(0.1, "copying", bytes_left=64 * MIB),
        sample(3.0, "waiting", bytes_left=40 * MIB, error="the <link> was cut & gone"),
        sample(4.0, "redialling", attempt=2),
        sample(4.1, "copying", attempt=2, bytes_left=64 * MIB, bytes_dirtied=0),
        sample(9.0, "converging", attempt=2, bytes_left=2 * MIB, bytes_dirtied=9 * MIB),
        sample(9.98, "parked", attempt=2, bytes_left=MIB, bytes_dirtied=10 * MIB),
        sample(9.99, "settling", attempt=2, bytes_left=0, bytes_dirtied=10 * MIB),
        sample(10.0, "given", attempt=2, bytes_left=0, bytes_dirtied=10 * MIB),
    ):
        found.change(change)
    for tenth in range(100):
        seconds = tenth / 10
        phase = "copying" if seconds < 9 else "converging"
        found.add(sample(seconds, phase, bytes_left=max(0, int((10 - seconds) * 6 * MIB))))
    return found


class PlotTests(SynchronousTestCase):
    def test_rates_are_those_of_stretches_that_are_long_enough(self) -> None:
        samples = [sample(tenth / 10, "copying") for tenth in range(101)]
        (run,) = rates(samples, lambda each: each.bytes_sent)
        self.assertLessEqual(len(run), 51)
        for _, rate in run:
            self.assertAlmostEqual(rate / MIB, 8, 3)

    def test_what_begins_anew_is_not_a_rate_below_zero(self) -> None:
        values = [None, 0, 10, 20, 0, 10]
        samples = [
            sample(float(at), "copying", bytes_dirtied=value) for at, value in enumerate(values)
        ]
        self.assertEqual(
            rates(samples, lambda each: each.bytes_dirtied),
            [[(1.5, 10.0), (2.5, 10.0)], [(4.5, 10.0)]],
        )

    def test_phases_follow_each_other_without_gaps(self) -> None:
        found = list(stages(list(history().changes)))
        self.assertEqual(
            [kind for _, _, kind in found],
            ["connecting", "copying", "waiting", "connecting", "copying", "converging", "parked"],
        )
        self.assertEqual(
            [end for _, end, _ in found], [begin for begin, _, _ in found[1:]] + [10.0]
        )

    def test_each_state_is_drawn_but_those_in_which_it_is_over(self) -> None:
        for state in SourceState:
            stage = stage_of(sample(0.0, state.phase, state=state.label))
            self.assertEqual(stage is None, state.is_over)
        self.assertEqual(stage_of(sample(0.0, "of a later version")), "parked")

    def test_everything_is_drawn_inside_the_drawing(self) -> None:
        for each in (history(), History(), one_sample()):
            drawing = ElementTree.fromstring(draw(each))
            for element in drawing.iter():
                for name, most in (("x", WIDTH), ("x1", WIDTH), ("y1", HEIGHT), ("y", HEIGHT)):
                    self.assertTrue(0 <= float(element.get(name, 0)) <= most, element.attrib)
                for x, y in re.findall(r"([\d.]+),([\d.]+)", element.get("d", "")):
                    self.assertTrue(0 <= float(x) <= WIDTH and 0 <= float(y) <= HEIGHT)

    def test_the_shortest_phase_can_be_seen(self) -> None:
        drawing = ElementTree.fromstring(draw(history()))
        (parked,) = [each for each in drawing if each.get("class") == "parked"]
        self.assertGreaterEqual(float(parked.get("width", 0)), 3)
        self.assertIn("0.020 s", "".join(parked.itertext()))

    def test_numbers_on_the_axes_are_round(self) -> None:
        drawing = ElementTree.fromstring(draw(history()))
        labels = [each.text for each in drawing if each.tag == "text"]
        for label in ("10.0 MiB/s", "0", "20.0 MiB", "2.0 s", "10 s"):
            self.assertIn(label, labels)


def one_sample() -> History:
    found = History()
    found.add(sample(0.0, "dialling"))
    return found


class Tags(HTMLParser):
    """Checks that tags are closed in order, and collects texts and whatever leads elsewhere."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.links: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


class PageTests(SynchronousTestCase):
    def test_is_whole_and_needs_nothing_else(self) -> None:
        tags = Tags(as_html(SUBJECT, history(), SUMMARY))
        self.assertEqual(tags.open, [])
        self.assertEqual(tags.links, [])
        self.assertNotIn("script", tags.seen)
        self.assertNotIn("url(", "".join(tags.texts))

    def test_tells_what_there_is_to_tell(self) -> None:
        text = " ".join(Tags(as_html(SUBJECT, history(), SUMMARY)).texts)
        for part in (
            "Migration of /images/<vm>&.img to 192.0.2.2:10810",
            "The image was given away.",
            "complete: 80.0 MiB in 2 passes, 10 s, 8.00 MiB/s; clients were parked for 0.020 s",
            "attempt failed: the <link> was cut & gone",
        ):
            self.assertIn(part, text)

    def test_of_one_that_did_not_succeed(self) -> None:
        summary = Summary("broken", "SIGTERM <b>", "192.0.2.2:1", 1.0, 0, 0, 0, 1, 0.0)
        page = as_html(SUBJECT, History(), summary)
        self.assertIn('class="bad">It was ended before its time', page)
        self.assertIn("SIGTERM &lt;b&gt;", page)

    def test_a_name_that_is_no_text_can_be_written(self) -> None:
        subject = Subject("0.1", "/images/\udcff", "", 1, "exit", "")
        self.assertIn("\\udcff", as_html(subject, History(), SUMMARY).encode().decode())

    def test_of_many_events_only_the_last_are_shown(self) -> None:
        found = History()
        for second in range(500):
            found.change(sample(float(second), "waiting", error=f"number {second}."))
        page = as_html(SUBJECT, found, SUMMARY)
        self.assertEqual(page.count("<td>attempt failed: "), MOST_ROWS)
        self.assertIn(f"The last {MOST_ROWS} events.", page)

    def test_a_day_is_not_larger_than_an_hour(self) -> None:
        found, now = History(), 0.0
        while now < 86400:
            found.add(sample(now, "copying", bytes_left=MIB))
            now += found.interval
        self.assertLess(len(as_html(SUBJECT, found, SUMMARY)), 100_000)


class DocumentTests(SynchronousTestCase):
    def test_has_everything_with_its_meaning(self) -> None:
        report = json.loads(as_json(SUBJECT, history(), SUMMARY))
        self.assertEqual((report["format"], report["version"]), (FORMAT, VERSION))
        self.assertEqual(report["subject"]["image"], SUBJECT.image)
        self.assertEqual(report["summary"]["parked"], 0.02)
        self.assertNotIn("reason", report["summary"])
        self.assertEqual(len(report["samples"]), 100)
        self.assertEqual(report["changes"][2]["error"], "the <link> was cut & gone")
        for part, kind in (
            ("subject", Subject),
            ("summary", Summary),
            ("changes and samples", Sample),
        ):
            fields = report["fields"][part]
            self.assertEqual(list(fields), [each.name for each in documented(kind)])
            for told in (report[part],) if part in report else report["samples"]:
                self.assertLessEqual(told.keys(), fields.keys())
        self.assertEqual(report["fields"]["summary"]["parked"]["unit"], "seconds")

    def test_a_name_that_is_no_text_can_be_written(self) -> None:
        subject = Subject("0.1", "/images/\udcff", "", 1, "exit", "")
        text = as_json(subject, History(), SUMMARY)
        self.assertEqual(json.loads(text.encode())["subject"]["image"], "/images/\udcff")
