"""A flush that failed is remembered, until something has made up for it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.errors import ImageError
from flexmigrate.image.durability import Durability
from flexmigrate.image.flush_failure import Boot, FlushFailure, Found, decode, encode


class Cache:
    """A page cache that fails as it is told to."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.errors: dict[str, list[int]] = {"sync": [], "write back": [], "look": []}
        self.can_be_emptied = True

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.errors[name]:
            number = self.errors[name].pop(0)
            raise OSError(number, os.strerror(number))

    def sync(self) -> None:
        self._call("sync")

    def write_back(self) -> None:
        self._call("write back")

    def look(self) -> None:
        self._call("look")

    def empty(self) -> bool:
        self.calls.append("empty")
        return self.can_be_emptied

    def close(self) -> None:
        self.calls.append("close")


class Note:
    """A note in memory."""

    def __init__(self, found: Found | None = None) -> None:
        self.found = found
        self.error: OSError | None = None
        self.kept = 0

    def load(self) -> Found | None:
        return self.found

    def keep(self, failure: FlushFailure) -> None:
        if self.error is not None:
            raise self.error
        self.kept += 1
        self.found = Found(failure, is_over=False)

    def remove(self) -> None:
        if self.error is not None:
            raise self.error
        self.found = None


class DurabilityTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.cache = Cache()
        self.note = Note()
        self.durability = self.opened()
        self.heard: list[FlushFailure] = []
        self.durability.heard = self.heard.append

    def opened(self, *, read_only: bool = False) -> Durability:
        self.cache.calls.clear()
        return Durability(self.cache, self.note, "/the/image", read_only=read_only)

    def fails(self, call: Callable[[], object], number: int = errno.ENOSPC) -> OSError:
        error = self.assertRaises(OSError, call)
        self.assertEqual(error.errno, number)
        return error

    def fail_once(self, number: int = errno.ENOSPC) -> None:
        self.cache.errors["sync"] = [number]
        self.fails(self.durability.flush, number)

    def test_without_a_failure_nothing_is_noted(self) -> None:
        self.durability.flush()
        self.durability.write_back()
        self.assertIsNone(self.durability.failure)
        self.assertEqual((self.note.kept, self.heard), (0, []))

    def test_after_a_failed_flush_every_flush_fails_with_its_error(self) -> None:
        self.fail_once(errno.ENOSPC)
        self.cache.errors["sync"] = [errno.EIO]
        for _ in range(3):
            self.assertIn("/the/image", str(self.fails(self.durability.flush)))
        self.assertEqual(self.cache.calls.count("sync"), 4)  # what can still be written is
        self.assertEqual(len(self.heard), 1)

    def test_an_error_of_writing_back_is_a_failed_flush(self) -> None:
        self.cache.errors["write back"] = [errno.EIO]
        self.fails(self.durability.write_back, errno.EIO)
        self.fails(self.durability.flush, errno.EIO)

    def test_so_is_one_that_is_found_by_looking(self) -> None:
        self.cache.errors["look"] = [errno.EIO]
        self.durability.look()
        self.fails(self.durability.flush, errno.EIO)

    def test_one_from_before_it_was_opened_is_found(self) -> None:
        self.cache.errors["look"] = [errno.EIO]
        self.fails(self.opened().flush, errno.EIO)

    def test_who_only_reads_leaves_it_to_the_next(self) -> None:
        self.opened(read_only=True)
        self.assertEqual(self.cache.calls, [])

    def test_it_is_noted_before_it_is_told(self) -> None:
        seen: list[bool] = []
        self.durability.heard = lambda failure: seen.append(self.note.found is not None)
        self.fail_once()
        self.assertEqual(seen, [True])
        self.assertIsNone(self.durability.unnoted)

    def test_that_it_can_not_be_noted_is_known_and_tried_again(self) -> None:
        self.note.error = OSError(errno.EROFS, "Read-only file system")
        self.fail_once()
        self.assertIs(self.durability.unnoted, self.note.error)
        self.fails(self.durability.flush)
        self.note.error = None
        self.fail_once()
        self.assertEqual(self.note.kept, 1)
        self.assertIsNone(self.durability.unnoted)

    def test_the_next_to_open_it_knows(self) -> None:
        self.fail_once()
        for read_only in (False, True):
            durability = self.opened(read_only=read_only)
            self.assertEqual(durability.failure, self.durability.failure)
            self.fails(durability.flush)

    def test_an_emptied_page_cache_makes_up_for_it(self) -> None:
        self.fail_once()
        self.cache.errors["look"] = [errno.EIO]  # what is left to be told is about what is gone
        self.durability.empty()
        self.durability.flush()
        self.assertIsNone(self.note.found)
        self.fail_once()
        self.assertEqual(len(self.heard), 2)

    def test_one_that_can_not_be_emptied_does_not(self) -> None:
        self.fail_once()
        self.cache.can_be_emptied = False
        error = self.assertRaises(ImageError, self.durability.empty)
        self.assertIn("ENOSPC", str(error))
        self.assertIn("drop_caches", str(error))
        self.fails(self.durability.flush)
        self.assertIsNotNone(self.note.found)

    def test_a_note_from_before_the_machine_was_started_is_told_once(self) -> None:
        failure = FlushFailure(errno.EIO, 1)
        self.note.found = Found(failure, is_over=True)
        durability = self.opened()
        self.assertEqual((durability.earlier, durability.failure), (failure, None))
        durability.flush()
        self.assertIsNone(self.opened().earlier)

    # A destination

    def test_what_is_received_is_compared_with_the_disk(self) -> None:
        self.assertTrue(self.durability.begin_receiving())
        self.assertNotIn("empty", self.cache.calls)
        self.fail_once()
        self.assertTrue(self.durability.begin_receiving())
        self.assertIn("empty", self.cache.calls)
        self.durability.flush()

    def test_what_failed_to_be_written_between_two_attempts_counts(self) -> None:
        self.cache.errors["look"] = [errno.EIO]
        self.assertTrue(self.durability.begin_receiving())
        self.assertIn("empty", self.cache.calls)

    def rewrite(self) -> None:
        self.fail_once()
        self.cache.can_be_emptied = False
        self.assertFalse(self.durability.begin_receiving())

    def test_where_that_can_not_be_everything_has_to_be_written_again(self) -> None:
        self.rewrite()
        self.durability.flush()
        self.assertIsNotNone(self.durability.failure)
        self.durability.rewritten()
        self.assertIsNone(self.durability.failure)
        self.assertIsNone(self.note.found)

    def test_another_failure_meanwhile_makes_that_worthless(self) -> None:
        self.rewrite()
        self.cache.errors["write back"] = [errno.EIO]
        self.fails(self.durability.write_back)
        self.fails(self.durability.flush)
        self.durability.rewritten()
        self.fails(self.durability.flush)

    def test_nothing_was_rewritten_where_nothing_had_to_be(self) -> None:
        self.fail_once()
        self.durability.rewritten()
        self.fails(self.durability.flush)


class NoteTests(SynchronousTestCase):
    FAILURE = FlushFailure(errno.ENOSPC, 1_700_000_000)
    BOOT = Boot(b"b" * 16, 100)

    def found(self, inode: int = 7, now: Boot = BOOT) -> Found | None:
        return decode(encode(self.FAILURE, 7, self.BOOT), inode, now)

    def test_it_says_what_was_noted(self) -> None:
        self.assertEqual(self.found(), Found(self.FAILURE, is_over=False))
        self.assertEqual(self.FAILURE.text, "2023-11-14T22:13:20Z ENOSPC: No space left on device")

    def test_a_copy_of_the_file_has_none(self) -> None:
        self.assertIsNone(self.found(inode=8))

    def test_nonsense_is_none(self) -> None:
        for data in (b"", b"text", bytes(100), encode(self.FAILURE, 7, self.BOOT)[:-1]):
            self.assertIsNone(decode(data, 7, self.BOOT))

    def test_it_is_over_once_the_machine_was_started_anew(self) -> None:
        unknown = bytes(16)
        for now, is_over in (
            (Boot(b"c" * 16, 200), True),
            (Boot(b"b" * 16, 200), False),
            (Boot(unknown, 200), False),  # it may have been
            (Boot(unknown, 50), True),
        ):
            found = self.found(now=now)
            assert found is not None
            self.assertEqual(found.is_over, is_over, now)

    def test_this_machine_was_not_started_anew_meanwhile(self) -> None:
        self.assertTrue(Boot.current().may_be(Boot.current()))
