"""Whose call is next: exhaustively, with calls that only note that they were begun."""

import queue
import threading
from collections import deque

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.image.file_storage import FileStorage
from flexmigrate.image.shares import LANES, THREADS, ImageThreads, Share, Shares, share_of
from flexmigrate.image.storage import NotBegun
from support.feeds import HandPool
from support.processes import PATIENCE


class Noted:
    """A call that notes what becomes of it in a list."""

    def __init__(self, name, notes):
        self.name, self.notes = name, notes

    def begin(self):
        self.notes.append(self.name)

    def forget(self):
        self.notes.append(f"not {self.name}")


class Turns(SynchronousTestCase):
    def setUp(self):
        self.notes = []

    def images(self, count, threads):
        self.shares = Shares(threads)
        return [Share(self.shares) for _ in range(count)]

    def ask(self, share, asker, *names):
        for name in names:
            share.do(asker, Noted(name, self.notes))

    def taken(self):
        notes, self.notes[:] = list(self.notes), []
        return notes

    def test_a_single_image_has_all_threads_and_its_own(self):
        (share,) = self.images(1, threads=4)
        self.ask(share, "a", *"12345678")
        self.assertEqual((self.taken(), self.shares.queued), (list("12345"), 3))
        for name in "678":
            share.ended()
            self.assertEqual(self.taken(), [name])

    def test_one_of_several_leaves_something_to_the_others(self):
        slow, other = self.images(2, threads=4)
        self.ask(slow, "a", *"123456789")
        self.assertEqual(self.taken(), list("1234"))
        self.ask(other, "b", *"xyz")
        self.assertEqual(self.taken(), ["x", "y"])

    def test_each_has_one_thread_whatever_the_others_do(self):
        images = self.images(20, threads=4)
        for number, share in enumerate(images):
            self.ask(share, "a", *(f"{number}" for _ in range(9)))
        self.assertEqual(set(self.taken()), {str(number) for number in range(20)})
        self.assertEqual(self.shares.in_use, 4)
        images[19].ended()
        self.assertEqual(self.taken(), ["19"])

    def test_images_take_turns(self):
        a, b, c = self.images(3, threads=4)
        for share, name in ((a, "a"), (b, "b"), (c, "c")):
            self.ask(share, "client", *(name for _ in range(6)))
        self.assertEqual(sorted(self.taken()), list("aaaabbc"))
        self.assertEqual(self.shares.in_use, 4)
        for share in (a, b, a, a):
            share.ended()
        # Two of a's were for all, as was b's; a's next one was its own.
        self.assertEqual(sorted(self.taken()), list("aabc"))

    def test_who_asks_for_much_waits_behind_himself(self):
        (share,) = self.images(1, threads=0)
        self.ask(share, "greedy", *"1234")
        self.ask(share, "modest", "m")
        self.ask(share, None, "migration")
        order = self.taken()
        while share.running:
            share.ended()
            order += self.taken()
        self.assertEqual(order, ["1", "2", "m", "migration", "3", "4"])

    def test_who_is_forgotten_is_told_and_stands_in_nobody_s_way(self):
        (share,) = self.images(1, threads=0)
        self.ask(share, "gone", *"123")
        self.ask(share, "here", "h")
        share.forget("gone")
        share.forget("nobody")
        self.assertEqual((self.taken(), self.shares.queued), (["1", "not 2", "not 3"], 1))
        share.ended()
        self.assertEqual(self.taken(), ["h"])
        share.ended()
        self.assertEqual((share.running, self.shares.in_use, self.shares.waiting), (0, 0, {}))

    def test_calls_that_end_as_they_begin(self):
        (share,) = self.images(1, threads=0)

        class AtOnce(Noted):
            def begin(self):
                super().begin()
                share.ended()

        share.do("a", Noted("first", self.notes))
        for name in "123":
            share.do("a", AtOnce(name, self.notes))
        share.ended()
        self.assertEqual((self.taken(), share.running), (["first", *"123"], 0))

    def test_an_image_that_is_closed_leaves_its_part(self):
        first, second = self.images(2, threads=4)
        second.close()
        second.close()
        self.ask(first, "a", *"123456")
        self.assertEqual(len(self.taken()), 5)

    def test_a_pool_of_another_kind_has_its_own_queue(self):
        share = share_of(HandPool())
        self.ask(share, "a", *(str(number) for number in range(1000)))
        self.assertEqual(len(self.taken()), 1000)

    def test_a_pool_has_threads_for_all_lanes(self):
        pool = ImageThreads()
        share_of(pool)
        share_of(pool)
        self.assertEqual(pool.max, THREADS + 2 * LANES)


class Disk:
    """An image each of whose calls waits until it is let go."""

    is_local = True

    def __init__(self):
        self.go = threading.Event()
        self.begun = deque()

    def read(self, offset, length):
        self.begun.append(offset)
        assert self.go.wait(PATIENCE)
        return bytes(length)

    def flush(self):
        assert self.go.wait(PATIENCE)

    def extents(self, offset, length):
        assert self.go.wait(PATIENCE)
        return iter(())


class WithThreads(SynchronousTestCase):
    """One disk hangs, and another's calls are done."""

    def setUp(self):
        self.pool = ImageThreads()
        self.pool.start()
        self.addCleanup(self.pool.stop)
        self.hanging, self.well = Disk(), Disk()
        self.addCleanup(self.hanging.go.set)  # before the pool is stopped
        self.well.go.set()
        self.calls = queue.Queue()
        self.slow = FileStorage(self.hanging, self, self.pool)
        self.quick = FileStorage(self.well, self, self.pool)

    def callFromThread(self, *call):  # noqa: N802  # the reactor's
        self.calls.put(call)

    def wait_for(self, answers):
        while not all(each.called for each in answers):
            call, *args = self.calls.get(timeout=PATIENCE)
            call(*args)
        for each in answers:
            self.successResultOf(each)

    def test_another_image_s_calls_and_flushes_are_done(self):
        stuck = [self.slow.read(number, 512) for number in range(60)]
        stuck += [self.slow.flush(), self.slow.extents(0, 512, 1)]
        done = [self.quick.flush(), self.quick.extents(0, 512, 1)]
        done += [self.quick.read(number, 512) for number in range(60)]
        self.wait_for(done)
        self.assertEqual(self.pool.shares.queued, 60 - 13)
        self.hanging.go.set()
        self.wait_for(stuck)
        self.assertEqual((self.slow.pending, self.quick.pending), (0, 0))

    def test_what_waits_for_a_thread_can_be_forgotten(self):
        asker = object()
        calls = [self.slow._calls.run_for(asker, self.hanging.read, each, 1) for each in range(30)]
        self.slow.forget(asker)
        for call in calls[13:]:
            self.failureResultOf(call, NotBegun)
        self.hanging.go.set()
        self.wait_for(calls[:13])
        self.assertEqual(self.slow.pending, 0)
