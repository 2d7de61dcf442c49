import ctypes
import errno
import os
import select
import tempfile
from collections.abc import Callable
from typing import Any
from unittest import SkipTest

from twisted.internet.interfaces import IReactorFDSet
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from flexmigrate.image.kernel import io_uring
from flexmigrate.image.kernel.io_uring import SLOT_SIZE, SLOTS, Ring
from flexmigrate.image.kernel.ring_reader import Ended, ShortReads, short_reads

BLOCK = 4096


def new_ring() -> Ring:
    try:
        return Ring()
    except OSError as error:
        raise SkipTest(f"no io_uring here: {error}") from None


def chill(fd: int) -> None:
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


class WithAFile(SynchronousTestCase):
    def setUp(self) -> None:
        file = tempfile.NamedTemporaryFile(dir=self.folder())  # noqa: SIM115  # closed by cleanup
        self.addCleanup(file.close)
        self.content = os.urandom(SLOTS * BLOCK + 100)
        file.write(self.content)
        file.flush()
        self.fd = file.fileno()
        chill(self.fd)

    def folder(self) -> str:
        path = self.mktemp()
        os.makedirs(path)
        return path


class Reads(WithAFile):
    def setUp(self) -> None:
        super().setUp()
        self.ring = new_ring()

    def completed(self, number: int) -> dict[int, bytes | None]:
        results: dict[int, bytes | None] = {}
        while len(results) < number:
            self.assertTrue(select.select([self.ring.fd], [], [], 60)[0], "nothing is completed")
            results.update(self.ring.completed())
        return results

    def test_many_at_once_have_the_bytes_that_were_asked_for(self) -> None:
        blocks = [(n, n * BLOCK, BLOCK) for n in range(SLOTS)]
        for _ in range(5):  # the rings go round
            slots = self.ring.begin(self.fd, [*blocks, (SLOTS, 0, BLOCK)])
            self.assertEqual(len(slots), SLOTS)
            self.assertEqual(self.ring.begin(self.fd, blocks), [])
            expected = [self.content[at : at + size] for _, at, size in blocks]
            self.assertEqual(self.completed(SLOTS), dict(zip(slots, expected, strict=True)))
            self.assertEqual(self.ring.in_use, 0)
        self.ring.close()

    def test_one_past_the_end_and_one_of_nothing_have_no_bytes(self) -> None:
        (short,) = self.ring.begin(self.fd, [(1, SLOTS * BLOCK, BLOCK)])
        (wrong,) = self.ring.begin(1 << 20, [(2, 0, BLOCK)])
        self.assertEqual(self.completed(2), {short: None, wrong: None})
        self.ring.close()

    def test_the_longest_read_fits(self) -> None:
        (slot,) = self.ring.begin(self.fd, [(1, 0, SLOT_SIZE)])
        self.assertEqual(self.completed(1), {slot: self.content[:SLOT_SIZE]})
        self.ring.close()

    def test_what_the_kernel_does_not_take_can_be_begun_again(self) -> None:
        real, blocks = io_uring._syscall, [(n, n * BLOCK, BLOCK) for n in range(3)]
        self.patch(io_uring, "_syscall", lambda *_: -1)
        self.assertEqual(self.ring.begin(self.fd, blocks), [])
        self.patch(io_uring, "_syscall", lambda number, fd, _, *more: real(number, fd, 1, *more))
        (first,) = self.ring.begin(self.fd, blocks)
        self.patch(io_uring, "_syscall", real)
        second, third = self.ring.begin(self.fd, blocks[1:])
        expected = [self.content[at : at + size] for _, at, size in blocks]
        slots = (first, second, third)
        self.assertEqual(self.completed(3), dict(zip(slots, expected, strict=True)))
        self.ring.close()

    def test_it_is_not_closed_under_a_read(self) -> None:
        self.ring.begin(self.fd, [(1, 0, BLOCK)])
        self.assertRaises(AssertionError, self.ring.close)
        self.completed(1)
        self.ring.close()
        self.assertEqual(self.ring.fd, -1)


class WhereThereIsNone(SynchronousTestCase):
    def refuse(self, number: int) -> Callable[..., int]:
        def refuse(*_: Any) -> int:
            ctypes.set_errno(number)
            return -1

        return refuse

    def test_an_old_kernel_and_a_forbidden_one_say_so(self) -> None:
        for number in (errno.ENOSYS, errno.EPERM):
            self.patch(io_uring, "_syscall", self.refuse(number))
            self.assertEqual(self.assertRaises(OSError, Ring).errno, number)

    def test_a_kernel_that_has_only_the_beginnings_of_it_is_refused(self) -> None:
        def old(number: int, entries: Any, parameters: Any) -> int:
            parameters[0:4] = SLOTS.to_bytes(4, "little")
            return os.open("/dev/null", os.O_RDONLY)

        self.patch(io_uring, "_syscall", old)
        self.assertIn("before 5.6", str(self.assertRaises(OSError, Ring)))

    def test_a_machine_that_may_reorder_loads_is_refused(self) -> None:
        self.patch(io_uring.platform, "machine", lambda: "aarch64")
        self.assertEqual(self.assertRaises(OSError, Ring).errno, errno.ENOTSUP)

    def test_the_log_says_why_reads_take_threads(self) -> None:
        self.patch(io_uring, "_syscall", self.refuse(errno.EPERM))
        with capturedLogs() as events:
            self.assertIsNone(short_reads(FDReactor(), print))
        self.assertIn("no io_uring: [Errno 1]", formatEvent(events[0]))

    def test_a_reactor_without_descriptors_has_none(self) -> None:
        self.assertIsNone(short_reads(object(), print))


@implementer(IReactorFDSet)
class FDReactor:
    """Knows its readers."""

    def __init__(self) -> None:
        self.readers: set[Any] = set()

    def addReader(self, reader: Any) -> None:
        self.readers.add(reader)

    def removeReader(self, reader: Any) -> None:
        self.readers.remove(reader)

    def wait(self) -> None:
        for reader in select.select(self.readers, [], [], 60)[0]:
            reader.doRead()


class InAReactor(WithAFile):
    def setUp(self) -> None:
        super().setUp()
        self.reactor = FDReactor()
        self.ended: list[tuple[int, Any, bytes | None]] = []
        self.reads = ShortReads(self.reactor, new_ring(), self.told)
        self.addCleanup(self.close)

    def close(self) -> None:
        self.reads.close()
        self.assertEqual(self.reactor.readers, set())

    def told(self, ended: list[Ended]) -> None:
        self.ended += [(each[0], about, data) for each, about, data in ended]

    def wait_for(self, number: int) -> None:
        while len(self.ended) < number:
            self.reactor.wait()

    def test_each_is_told_of_once_with_what_it_was_begun_with(self) -> None:
        wanted = [(n, n * BLOCK, BLOCK) for n in range(8)]
        self.assertEqual(self.reads.begin(self.fd, wanted, "mine"), [])
        self.wait_for(8)
        blocks = [self.content[n * BLOCK : (n + 1) * BLOCK] for n in range(8)]
        self.assertEqual(sorted(self.ended), [(n, "mine", blocks[n]) for n in range(8)])

    def test_what_there_is_no_room_for_is_returned(self) -> None:
        wanted = [(n, 0, BLOCK) for n in range(SLOTS + 3)]
        self.assertEqual(self.reads.begin(self.fd, wanted, None), wanted[SLOTS:])
        self.assertEqual(self.reads.begin(self.fd, wanted[:1], None), wanted[:1])
        self.wait_for(SLOTS)
        self.assertEqual(self.reads.begin(self.fd, wanted[:1], None), [])
        self.wait_for(SLOTS + 1)

    def test_who_is_told_may_begin_as_many_again_or_close(self) -> None:
        wanted = [(n, 0, BLOCK) for n in range(SLOTS)]
        left: list[Any] = []

        def again(ended: list[Ended]) -> None:
            if not self.ended:
                left.extend(self.reads.begin(self.fd, wanted[: len(ended)], None))
            self.told(ended)

        self.reads._told = again
        self.reads.begin(self.fd, wanted, None)
        self.wait_for(SLOTS + 1)
        while self.reads._begun:
            self.reactor.wait()
        self.assertEqual(left, [])

    def test_a_bug_of_who_is_told_is_logged_and_the_next_reads_come(self) -> None:
        def broken(ended: list[Ended]) -> None:
            raise ZeroDivisionError

        self.reads._told = broken
        self.reads.begin(self.fd, [(1, 0, BLOCK)], None)
        self.reactor.wait()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.reads._told = self.told
        self.reads.begin(self.fd, [(2, 0, BLOCK)], None)
        self.wait_for(1)

    def test_what_cannot_be_read_so_has_no_bytes(self) -> None:
        self.reads.begin(self.fd, [(1, SLOTS * BLOCK, BLOCK)], None)
        self.wait_for(1)
        self.assertEqual(self.ended, [(1, None, None)])

    def test_what_the_kernel_refuses_is_returned_and_leaves_room(self) -> None:
        real = io_uring._syscall
        self.patch(io_uring, "_syscall", lambda *_: -1)
        for _ in range(SLOTS + 1):
            self.assertEqual(self.reads.begin(self.fd, [(1, 0, BLOCK)], None), [(1, 0, BLOCK)])
        self.patch(io_uring, "_syscall", real)
        self.assertEqual(self.reads.begin(self.fd, [(1, 0, BLOCK)], None), [])
        self.wait_for(1)
