"""Done, then marked, then answered: what a migration relies on."""

import errno

from flexmigrate.wire.constants import Command, CommandFlag
from support.serving import Recorder, SuiteBase, each_way

SIZE = 2 << 20
READ, WRITE, TRIM, ZERO = Command.READ, Command.WRITE, Command.TRIM, Command.WRITE_ZEROES
HOLE_AND_ZERO = 3


class OrderSuite(SuiteBase):
    """For every change, on every path."""

    size = SIZE

    def setUp(self):
        super().setUp()
        self.recorder = Recorder()
        self.served.export.observer = self.recorder
        self.events = self.recorder.events
        image, export = self.served.image, self.served.export
        image.done = self.Told(self.events, "done")
        outlet = self.client.feed.protocol._outlet
        commands = self.client.feed.protocol._transmission
        recording = RecordingOutlet(outlet, self.events)
        commands._outlet = commands.commands._outlet = recording
        self.assertIs(export.observer, self.recorder)

    class Told(list):
        def __init__(self, events, word):
            super().__init__()
            self.events, self.word = events, word

        def append(self, done):
            self.events.append((self.word, *done))

    def changes(self):
        """Yield (what sends a change, its range)."""
        yield lambda: self.client.write(4096, b"x" * 512), (4096, 512)
        yield lambda: self.client.write(10, b"y" * 500, CommandFlag.FUA), (10, 500)
        yield lambda: self.client.write(0, b"z" * 700_000), (0, 700_000)
        yield lambda: self.client.ask(TRIM, 8192, 4096), (8192, 4096)
        yield lambda: self.client.ask(ZERO, 12288, 4096), (12288, 4096)
        yield lambda: self.client.ask(ZERO, 5, 4096, flags=CommandFlag.FUA), (5, 4096)
        yield lambda: self.client.ask(ZERO, 5, 99, flags=CommandFlag.NO_HOLE), (5, 99)

    def test_a_change_is_done_then_marked_then_answered(self):
        for cold in (False, True):
            self.served.image.cold = cold
            for change, (offset, length) in self.changes():
                self.events.clear()
                self.assertEqual(self.client.error(change()), 0)
                words = [event[0] for event in self.events]
                marks = [event for event in self.events if event[0] == "marked"]
                self.assertEqual(sum(size for _, _, size in marks), length)
                self.assertEqual(marks[0][1], offset)
                self.assertEqual(words.count("answered"), 1)
                self.assertEqual(words[-1], "answered")
                for at, event in enumerate(self.events):
                    if event[0] == "marked":
                        before = [found[2:] for found in self.events[:at] if found[0] == "done"]
                        self.assertIn(event[1:], before)

    def test_a_change_that_fails_is_told_to_the_observer_before_it_is_answered(self):
        for name in ("write", "zero", "trim"):
            self.served.image.faults[name] = OSError(errno.EIO, "the disk is ill")
        for cold in (False, True):
            self.served.image.cold = cold
            for change, (offset, _) in self.changes():
                self.events.clear()
                self.assertEqual(self.client.error(change()), errno.EIO)
                self.assertEqual([event[0] for event in self.events], ["failed", "answered"])
                self.assertEqual(self.events[0][1], offset)

    def test_a_flush_that_fails_is_told_to_the_observer_before_it_is_answered(self):
        self.served.image.faults["flush"] = OSError(errno.EIO, "some write was lost")
        asked = (
            lambda: self.client.ask(Command.FLUSH),
            lambda: self.client.write(0, b"w", CommandFlag.FUA),
            lambda: self.client.ask(ZERO, 0, 512, flags=CommandFlag.FUA),
        )
        for ask in asked:
            self.events.clear()
            self.assertEqual(self.client.error(ask()), errno.EIO)
            self.assertEqual(self.events[-2:], [("flush failed",), ("answered",)])

    def test_a_fast_zero_that_would_not_be_fast_changes_nothing(self):
        self.served.image.faults["zero"] = OSError(errno.ENOTSUP, "not fast")
        cookie = self.client.ask(ZERO, 0, 4096, flags=CommandFlag.FAST_ZERO)
        self.assertEqual(self.client.error(cookie), errno.ENOTSUP)
        self.assertEqual(self.events, [("answered",)])

    def test_a_change_that_is_refused_is_told_to_the_observer(self):
        for command in (WRITE, TRIM, ZERO):
            self.events.clear()
            self.assertNotEqual(self.client.error(self.client.ask(command, SIZE, 10)), 0)
            self.assertEqual([event[0] for event in self.events], ["refused", "answered"])

    def test_reads_are_nothing_to_the_observer(self):
        self.client.read(0, 100)
        self.client.read(0, 100_000)
        self.assertEqual({event[0] for event in self.events}, {"answered"})


class RecordingOutlet:
    def __init__(self, outlet, events):
        self.outlet, self.events = outlet, events

    def send(self, data, more=False):
        self.events.append(("answered",))
        self.outlet.send(data, more)

    def __getattr__(self, name):
        return getattr(self.outlet, name)


each_way(OrderSuite, globals())
