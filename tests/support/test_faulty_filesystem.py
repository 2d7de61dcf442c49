"""The FUSE filesystem does what a test tells it to."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.faulty_filesystem import FaultyFilesystem, faulty_filesystem

PAGE = 4096


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[FaultyFilesystem]:
    """One that writes through."""
    with faulty_filesystem(tmp_path / "mounted") as mounted:
        yield mounted


@pytest.fixture
def lazy(tmp_path: Path) -> Iterator[FaultyFilesystem]:
    """One with write-back."""
    with faulty_filesystem(tmp_path / "mounted", write_back=True) as mounted:
        yield mounted


@pytest.fixture
def image(request: pytest.FixtureRequest) -> Iterator[int]:
    """A file of 16 pages on either of them, opened."""
    name = next(each for each in ("plain", "lazy") if each in request.fixturenames)
    mounted: FaultyFilesystem = request.getfixturevalue(name)
    descriptor = os.open(mounted.folder / "image", os.O_RDWR | os.O_CREAT, 0o600)
    os.truncate(descriptor, 16 * PAGE)
    yield descriptor
    os.close(descriptor)


def fails_with(number: int) -> pytest.RaisesExc[OSError]:
    """Expect this error."""
    return pytest.raises(OSError, check=lambda error: error.errno == number)


def test_everything_is_handed_on(plain: FaultyFilesystem) -> None:
    one, other = plain.folder / "one", plain.folder / "folder" / "other"
    other.parent.mkdir()
    one.write_bytes(b"content")
    os.setxattr(one, "user.mine", b"value")
    os.link(one, other)
    assert os.getxattr(other, "user.mine") == b"value"
    assert one.stat().st_ino == other.stat().st_ino
    one.rename(plain.folder / "else")
    assert sorted(os.listdir(plain.beneath)) == ["else", "folder"]
    assert (plain.beneath / "folder" / "other").read_bytes() == b"content"


def test_a_write_fails_where_it_is_told_to(plain: FaultyFilesystem, image: int) -> None:
    plain.fail("write", "image", errno.EIO, start=PAGE, end=2 * PAGE)
    assert os.pwrite(image, b"x" * PAGE, 0) == PAGE
    with fails_with(errno.EIO):
        os.pwrite(image, b"x" * PAGE, PAGE)
    os.close(os.open(plain.folder / "another", os.O_WRONLY | os.O_CREAT))
    (plain.folder / "another").write_bytes(b"x" * 2 * PAGE)
    plain.clear()
    assert os.pwrite(image, b"x" * PAGE, PAGE) == PAGE


def test_fsync_fails_as_long_as_it_is_told_to(plain: FaultyFilesystem, image: int) -> None:
    plain.fail("fsync", error=errno.ENOSPC)
    for _ in range(2):
        with fails_with(errno.ENOSPC):
            os.fdatasync(image)
    plain.clear()
    os.fdatasync(image)


def test_a_failed_write_back_is_told_once_and_forgotten(lazy: FaultyFilesystem, image: int) -> None:
    lazy.fail("write", "image")
    os.pwrite(image, b"x" * PAGE, 0)
    with fails_with(errno.EIO):
        os.fdatasync(image)
    lazy.clear()
    os.fdatasync(image)
    assert os.pread(image, PAGE, 0) == b"x" * PAGE
    assert (lazy.beneath / "image").read_bytes()[:PAGE] == bytes(PAGE)


def test_what_is_not_written_back_is_called_a_hole(lazy: FaultyFilesystem, image: int) -> None:
    os.pwrite(image, b"x" * PAGE, 4 * PAGE)
    with fails_with(errno.ENXIO):
        os.lseek(image, 0, os.SEEK_DATA)
    os.fdatasync(image)
    assert os.lseek(image, 0, os.SEEK_DATA) == 4 * PAGE


def test_without_lseek_all_is_data(tmp_path: Path) -> None:
    with faulty_filesystem(tmp_path / "mounted", lseek=False) as mounted:
        path = mounted.folder / "image"
        path.touch()
        os.truncate(path, PAGE)
        with path.open("rb") as file:
            assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 0


def test_operations_are_held_and_counted(plain: FaultyFilesystem, image: int) -> None:
    plain.hold("write", "image")
    writer = threading.Thread(target=os.pwrite, args=(image, b"x", 0))
    writer.start()
    plain.wait_for("write", "image")
    assert (plain.beneath / "image").read_bytes()[:1] == b"\0"
    plain.release()
    writer.join()
    assert (plain.beneath / "image").read_bytes()[:1] == b"x"
    assert plain.begun("write", "image") == 1
    assert plain.begun("write", "another") == 0
