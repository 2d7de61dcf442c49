"""The page's document, and those who are kept informed, without sockets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.migration.destination.coverage import Coverage
from flexmigrate.migration.dirty_map import DirtyMap
from flexmigrate.server.measuring import Meter
from flexmigrate.telemetry.history import Tally
from flexmigrate.telemetry.status import Status
from flexmigrate.web.document import MOST_CELLS, MOST_MOVING, MOST_ROWS, Document, cell_size, level
from flexmigrate.web.feed import INTERVAL, PATIENCE, REST, Feed
from flexmigrate.web.view import ClientView, ExportView, Moving, ServerView

MIB = 1 << 20
STATUS = Status(
    pid=7, size=64 * MIB, has_control=True, clients_allowed=True, num_clients=0, is_mirroring=True
)


def export(name: str = "", moving: Moving | None = None, **changes: Any) -> ExportView:
    status = replace(STATUS, **changes)
    return ExportView(name, status, 0, 0, Meter().of(name), Tally(), moving)


def document(*exports: ExportView, clients: int = 0) -> dict[str, Any]:
    seen = [ClientView(number, "unix", None) for number in range(clients)]
    view = ServerView(list(exports), clients=seen)
    text = "".join(Document(lambda: view, "name").pieces())
    told: dict[str, Any] = json.loads(text)
    return told


class Documents(SynchronousTestCase):
    def test_a_server_that_does_nothing(self) -> None:
        told = document(export("a", is_mirroring=False))
        self.assertEqual(told["server"]["pid"], 7)
        self.assertEqual([each["name"] for each in told["exports"]], ["a"])
        self.assertEqual(told["migrations"], [])

    def test_a_map_has_a_digit_for_each_cell_and_the_same_cells_for_each_layer(self) -> None:
        dirty = DirtyMap(64 * MIB, 64 * 1024)
        dirty.mark(0, 64 * 1024)
        dirty.mark(32 * MIB, 32 * MIB)
        other = DirtyMap(64 * MIB, 64 * 1024)
        other.mark(64 * MIB - 1, 1)
        moving = Moving(0.0, None, {"left": dirty, "unverified": other})
        (told,) = document(export(moving=moving))["migrations"]
        self.assertEqual(told["map"]["cell"], 64 * 1024)
        self.assertEqual(told["map"]["left"], "9" + "0" * 511 + "9" * 512)
        self.assertEqual(told["map"]["unverified"], "0" * 1023 + "9")

    def test_however_large_an_image_is_its_map_is_not(self) -> None:
        for size in (1, 4096, 64 * MIB + 512, 1 << 34, (1 << 40) + 512):
            dirty = DirtyMap(size)
            dirty.mark(0, size)
            cell = cell_size(size, {"left": dirty})
            self.assertLessEqual(-(-size // cell), MOST_CELLS)
            moving = Moving(0.0, None, {"left": dirty})
            (told,) = document(export(moving=moving, size=size))["migrations"]
            self.assertEqual(told["map"]["left"], "9" * -(-size // cell))

    def test_what_was_received_is_counted_too(self) -> None:
        coverage = Coverage(4 * MIB, 4096)
        coverage.mark(MIB, MIB)
        moving = Moving(0.0, None, {"received": coverage})
        (told,) = document(export(moving=moving, size=4 * MIB))["migrations"]
        self.assertEqual(told["map"]["received"], "0" * 256 + "9" * 256 + "0" * 512)

    def test_a_shade_is_0_only_where_nothing_is(self) -> None:
        self.assertEqual(
            [level(part, 1000) for part in (0, 1, 111, 112, 999, 1000)], [0, 1, 1, 2, 9, 9]
        )

    def test_of_many_only_the_first_are_told_and_how_many_there_are(self) -> None:
        dirty = DirtyMap(MIB)
        exports = [export(str(n), Moving(float(n), None, {"left": dirty})) for n in range(150)]
        told = document(*exports, clients=200)
        self.assertEqual(told["server"]["num_exports"], 150)
        self.assertEqual(len(told["exports"]), MOST_ROWS)
        self.assertEqual(len(told["clients"]), MOST_ROWS)
        self.assertEqual(len(told["migrations"]), MOST_MOVING)

    def test_a_name_that_is_no_text_is_shown_all_the_same(self) -> None:
        told = document(export("disk\udcff"))
        self.assertEqual(told["exports"][0]["name"], "disk\\udcff")


class Watcher:
    def __init__(self) -> None:
        self.behind = False
        self.got: list[Any] = []

    def send(self, document: str) -> None:
        self.got.append(document)

    def end(self, farewell: str | None) -> None:
        self.got.append(("end", farewell))

    def abort(self) -> None:
        self.got.append("aborted")


class Feeds(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.made = 0
        self.cost = 0.0
        self.feed = Feed(self.clock, self.pieces)

    def pieces(self) -> Iterator[str]:
        self.made += 1
        yield "document "
        self.clock.rightNow += self.cost
        yield str(self.made)

    def pass_by(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.1) * 4):
            self.clock.advance(0.025)

    def test_nothing_is_made_while_nobody_looks(self) -> None:
        self.pass_by(10)
        self.assertEqual((self.made, self.clock.getDelayedCalls()), (0, []))

    def test_all_are_told_the_same_and_it_is_made_once(self) -> None:
        watchers = [Watcher() for _ in range(3)]
        for each in watchers:
            self.feed.join(each)
        self.pass_by(3 * INTERVAL)
        self.assertGreaterEqual(self.made, 2)
        for each in watchers:
            self.assertEqual(each.got, [f"document {n + 1}" for n in range(self.made)])

    def test_when_all_have_left_it_stops(self) -> None:
        watcher = Watcher()
        self.feed.join(watcher)
        self.pass_by(1)
        self.feed.leave(watcher)
        self.pass_by(1)
        made = self.made
        self.pass_by(5)
        self.assertEqual(self.made, made)

    def test_one_that_took_long_is_made_less_often(self) -> None:
        self.cost = 0.5
        self.feed.join(Watcher())
        self.pass_by(0.5)
        self.assertEqual(self.made, 1)
        self.pass_by(REST * self.cost / 2)
        self.assertEqual(self.made, 1)
        self.pass_by(REST * self.cost)
        self.assertEqual(self.made, 2)

    def test_who_does_not_read_is_skipped_and_let_go_after_a_while(self) -> None:
        slow, quick = Watcher(), Watcher()
        self.feed.join(slow)
        self.feed.join(quick)
        self.pass_by(1)
        slow.behind = True
        got = len(slow.got)
        self.pass_by(PATIENCE / 2)
        self.assertEqual(len(slow.got), got)
        self.pass_by(PATIENCE)
        self.assertEqual(slow.got[got:], ["aborted"])
        self.assertGreater(len(quick.got), got + 10)

    def test_who_asks_gets_one_that_is_not_old(self) -> None:
        first = self.feed.ask()
        self.pass_by(0.2)
        self.assertEqual(self.successResultOf(first), "document 1")
        self.assertEqual(self.successResultOf(self.feed.ask()), "document 1")
        self.pass_by(INTERVAL)
        later = self.feed.ask()
        self.pass_by(0.2)
        self.assertEqual(self.successResultOf(later), "document 2")

    def test_the_end_is_told_with_the_last_document(self) -> None:
        watcher = Watcher()
        self.feed.join(watcher)
        self.pass_by(0.2)
        closed = self.feed.close("over")
        self.pass_by(0.2)
        self.successResultOf(closed)
        self.assertEqual(watcher.got[-2:], ["document 2", ("end", "over")])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_with_nobody_there_the_end_waits_for_nothing(self) -> None:
        self.successResultOf(self.feed.close("over"))

    def test_a_bug_is_logged_and_who_asked_is_told(self) -> None:
        def broken() -> Iterator[str]:
            yield "{"
            raise ZeroDivisionError

        feed = Feed(self.clock, broken)
        watcher = Watcher()
        feed.join(watcher)
        asked = feed.ask()
        self.pass_by(0.2)
        self.failureResultOf(asked, ZeroDivisionError)
        self.assertEqual(watcher.got, ["aborted"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
