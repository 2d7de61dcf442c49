from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.image import disk
from flexmigrate.image.disk import SYSTEM


class Watched:
    """The disk of this machine, which tells what it is asked for, and may fail at it.

    :ivar asked: what was asked for, in its order.
    :ivar before: called before each call with its name; may raise.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.before: Callable[[str], object] = lambda name: None

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            self.asked.append(name)
            self.before(name)
            return getattr(os, name)(*args)

        return call


class DiskCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.path = self.folder / "record"
        self.watched = Watched()
        self.disk: Any = self.watched

    def fail_at(self, name: str, number: int = errno.EIO) -> None:
        """Let the disk's *name* fail."""

        def fail(asked: str) -> None:
            if asked == name:
                raise OSError(number, os.strerror(number))

        self.watched.before = fail

    def descriptors(self) -> int:
        return len(os.listdir("/proc/self/fd"))


class ReplaceTests(DiskCase):
    def test_syncs_the_file_before_it_has_its_name_and_the_folder_after(self) -> None:
        before = self.descriptors()
        disk.replace(self.disk, str(self.path), b"text")
        self.assertEqual(
            self.watched.asked,
            ["open", "write", "fsync", "close", "replace", "open", "fsync", "close"],
        )
        self.assertEqual(self.path.read_bytes(), b"text")
        self.assertEqual(os.listdir(self.folder), ["record"])
        self.assertEqual(self.descriptors(), before)

    def test_writes_all_however_little_is_taken_at_once(self) -> None:
        class Slow:
            def __getattr__(self, name: str) -> Any:
                return getattr(os, name)

            def write(self, fd: int, data: bytes) -> int:
                return os.write(fd, data[:3])

        slow: Any = Slow()
        disk.replace(slow, str(self.path), b"0123456789")
        self.assertEqual(self.path.read_bytes(), b"0123456789")

    def test_leaves_what_was_there_where_it_fails(self) -> None:
        self.path.write_bytes(b"old")
        before = self.descriptors()
        for name in ("open", "write", "fsync", "replace"):
            self.fail_at(name)
            self.assertRaises(OSError, disk.replace, self.disk, str(self.path), b"new")
            self.assertEqual(self.path.read_bytes(), b"old", name)
            self.assertEqual(self.descriptors(), before, name)

    def test_leaves_nothing_behind_where_it_fails(self) -> None:
        for name in ("write", "fsync", "replace"):
            self.fail_at(name, errno.ENOSPC)
            error = self.assertRaises(OSError, disk.replace, self.disk, str(self.path), b"new")
            self.assertEqual(error.filename, str(self.path))
            self.assertEqual(os.listdir(self.folder), [], name)

    def test_shortens_what_was_longer(self) -> None:
        self.path.write_bytes(b"something longer")
        disk.replace(SYSTEM, str(self.path), b"short")
        self.assertEqual(self.path.read_bytes(), b"short")

    def test_takes_no_file_that_somebody_has_prepared(self) -> None:
        names: list[str] = []
        for _ in range(2):
            disk.replace(self.disk, str(self.path), b"ours")
        self.watched.before = lambda name: names.extend(
            each for each in os.listdir(self.folder) if each != "record" and name == "write"
        )
        for _ in range(4):
            disk.replace(self.disk, str(self.path), b"ours")
        self.assertEqual(len(set(names)), 4)
        token = mock.patch("secrets.token_hex", return_value=names[0].split("-")[1][:-4])
        prepared = self.folder / names[0]
        prepared.write_bytes(b"theirs")
        with token:
            self.assertRaises(FileExistsError, disk.replace, SYSTEM, str(self.path), b"ours")
        self.assertEqual(prepared.read_bytes(), b"theirs")

    def test_follows_no_link_that_somebody_left_there(self) -> None:
        other = self.folder / "other"
        other.write_bytes(b"theirs")
        self.path.symlink_to(other)
        disk.replace(SYSTEM, str(self.path), b"ours")
        self.assertEqual(other.read_bytes(), b"theirs")
        self.assertFalse(self.path.is_symlink())


class RemoveTests(DiskCase):
    def test_syncs_the_folder(self) -> None:
        self.path.write_bytes(b"")
        disk.remove(self.disk, str(self.path))
        self.assertEqual(self.watched.asked, ["unlink", "open", "fsync", "close"])
        self.assertFalse(self.path.exists())

    def test_syncs_it_even_where_the_name_is_gone(self) -> None:
        disk.remove(self.disk, str(self.path))
        self.assertIn("fsync", self.watched.asked)

    def test_tells_what_fails(self) -> None:
        self.path.write_bytes(b"")
        self.fail_at("unlink", errno.EROFS)
        self.assertRaises(OSError, disk.remove, self.disk, str(self.path))
        self.assertTrue(self.path.exists())


class LookTests(DiskCase):
    def test_nothing_there(self) -> None:
        (self.folder / "file").write_bytes(b"")
        for name in ("missing", "missing/missing", "file/within", "x" * 256):
            path = str(self.folder / name)
            self.assertIsNone(disk.read(SYSTEM, path, 10), name)
            self.assertFalse(disk.exists(SYSTEM, path), name)

    def test_a_link_that_leads_nowhere_is_something(self) -> None:
        self.path.symlink_to("nowhere")
        self.assertTrue(disk.exists(SYSTEM, str(self.path)))

    def test_what_can_not_be_told_is_told_so(self) -> None:
        self.fail_at("lstat", errno.EACCES)
        self.assertRaises(PermissionError, disk.exists, self.disk, str(self.path))
        self.path.write_bytes(b"")
        self.fail_at("open", errno.EACCES)
        self.assertRaises(PermissionError, disk.read, self.disk, str(self.path), 10)

    def test_reads_no_more_than_wanted(self) -> None:
        self.path.write_bytes(b"0123456789")
        before = self.descriptors()
        for limit, found in ((3, b"012"), (10, b"0123456789"), (11, b"0123456789"), (0, b"")):
            self.assertEqual(disk.read(SYSTEM, str(self.path), limit), found)
        self.assertEqual(self.descriptors(), before)

    def test_reads_all_however_little_comes_at_once(self) -> None:
        class Slow:
            def __getattr__(self, name: str) -> Any:
                return getattr(os, name)

            def read(self, fd: int, length: int) -> bytes:
                return os.read(fd, min(length, 3))

        slow: Any = Slow()
        self.path.write_bytes(b"0123456789")
        self.assertEqual(disk.read(slow, str(self.path), 100), b"0123456789")

    def test_a_read_that_fails_is_told_of(self) -> None:
        self.path.write_bytes(b"ours")
        self.fail_at("read")
        error = self.assertRaises(OSError, disk.read, self.disk, str(self.path), 10)
        self.assertEqual((error.errno, error.filename), (errno.EIO, str(self.path)))

    def test_identity(self) -> None:
        self.path.write_bytes(b"")
        status = self.path.stat()
        self.assertEqual(disk.identity(SYSTEM, str(self.path)), (status.st_dev, status.st_ino))
        self.assertRaises(FileNotFoundError, disk.identity, SYSTEM, str(self.path) + "x")

    def test_a_mark_is_of_the_file_and_of_none_that_has_its_name_later(self) -> None:
        self.path.write_bytes(b"one")
        first = disk.file_id(SYSTEM, str(self.path))
        self.path.write_bytes(b"changed")
        self.assertEqual(disk.file_id(SYSTEM, str(self.path)), first)
        (self.folder / "other").write_bytes(b"two")
        os.replace(self.folder / "other", self.path)
        self.assertNotIn(disk.file_id(SYSTEM, str(self.path)), (first, ""))

    def test_only_files_have_one(self) -> None:
        for path in ("/dev/null", str(self.folder), str(self.folder / "nothing")):
            self.assertEqual(disk.file_id(SYSTEM, path), "")
