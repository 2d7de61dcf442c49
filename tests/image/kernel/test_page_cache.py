"""The page cache of real disks that fail: a full one below a device, and a FUSE filesystem's."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexmigrate.errors import ImageError
from flexmigrate.image.file import Image
from flexmigrate.image.kernel import calls as linux
from flexmigrate.image.kernel.page_cache import PageCache
from support.faulty_filesystem import FaultyFilesystem, faulty_filesystem
from support.privileges import FailingDevice, failing_device, needs_root

MIB = 1 << 20
SIZE = 8 * MIB
PAGE = 4096

pytestmark = needs_root


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have the notes of devices in a folder of the test's own."""
    monkeypatch.setenv("FLEXMIGRATE_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state" / "devices"


@pytest.fixture
def device(tmp_path: Path) -> Iterator[FailingDevice]:
    """Make one that has room for half."""
    with failing_device(tmp_path / "small", SIZE, room=SIZE // 2) as made:
        yield made


@pytest.fixture
def lazy(tmp_path: Path) -> Iterator[FaultyFilesystem]:
    """Mount a filesystem with write-back, and a file on it."""
    with faulty_filesystem(tmp_path / "mounted", write_back=True) as mounted:
        path = mounted.folder / "image"
        path.touch()
        os.truncate(path, SIZE)
        yield mounted


def lost(image: Image, number: int = errno.EIO) -> None:
    """Write all of it, and see that it can't be flushed, now or later."""
    for offset in range(0, SIZE, MIB):
        image.write(b"x" * MIB, offset)
    for _ in range(2):
        with pytest.raises(OSError, match="flushing") as caught:
            image.flush()
        assert caught.value.errno == number


def test_an_emptied_page_cache_shows_the_disk(device: FailingDevice, state: Path) -> None:
    image = Image.open(str(device.path))
    lost(image)
    (note,) = state.iterdir()
    assert note.name.endswith(".flush")
    device.mend()
    # What the page cache has is not what the device has.
    assert image.read(SIZE - MIB, MIB) == b"x" * MIB
    assert device.backing.read_bytes()[-MIB:] == bytes(MIB)
    image.empty_cache()
    assert image.read(SIZE - MIB, MIB) == bytes(MIB)
    assert not list(state.iterdir())
    image.flush()
    image.close()


def test_the_next_to_open_it_knows(device: FailingDevice) -> None:
    image = Image.open(str(device.path))
    lost(image)
    failure = image.durability.failure
    image.close()
    image = Image.open(str(device.path))
    assert image.durability.failure == failure
    image.close()


def test_an_error_that_nobody_was_told_of_is_found(device: FailingDevice) -> None:
    descriptor = os.open(device.path, os.O_RDWR)  # keeps the page cache
    os.pwrite(descriptor, b"x" * SIZE, 0)
    os.sync()  # which tells nobody
    image = Image.open(str(device.path))
    assert image.durability.failure is not None
    with pytest.raises(OSError, match="flushing"):
        image.flush()
    image.close()
    os.close(descriptor)


def test_what_is_found_by_looking_is_not_taken_from_a_flush(device: FailingDevice) -> None:
    descriptor = os.open(device.path, os.O_RDWR)
    cache = PageCache(descriptor, is_block_device=True, in_memory=False)
    cache.look()
    os.pwrite(descriptor, b"x" * SIZE, 0)
    os.sync()
    for call in (cache.look, cache.sync):
        with pytest.raises(OSError, match="Input/output"):
            call()
    cache.look()
    cache.write_back()
    cache.sync()
    cache.close()
    os.close(descriptor)


def test_a_file_has_its_note_with_it(tmp_path: Path, lazy: FaultyFilesystem) -> None:
    image = Image.open(str(lazy.folder / "image"))
    lazy.fail("write", "image", errno.ENOSPC)
    lost(image, errno.ENOSPC)
    image.close()
    lazy.clear()
    (lazy.folder / "image").rename(lazy.folder / "renamed")
    image = Image.open(str(lazy.folder / "renamed"))
    assert image.read(0, PAGE) == b"x" * PAGE
    with pytest.raises(OSError, match="No space"):
        image.flush()
    image.empty_cache()
    assert image.read(0, PAGE) == bytes(PAGE)
    image.flush()
    image.close()
    image = Image.open(str(lazy.folder / "renamed"))
    assert image.durability.failure is None
    image.close()


def test_one_without_attributes_has_it_in_the_state_folder(
    lazy: FaultyFilesystem, state: Path
) -> None:
    lazy.fail("setxattr", "image", errno.EOPNOTSUPP)
    lazy.fail("getxattr", "image", errno.EOPNOTSUPP)
    image = Image.open(str(lazy.folder / "image"))
    lazy.fail("fsync", "image")
    lost(image)
    image.close()
    assert len(list(state.iterdir())) == 1
    image = Image.open(str(lazy.folder / "image"))
    assert image.durability.failure is not None
    image.empty_cache()
    image.close()
    assert not list(state.iterdir())


@pytest.mark.parametrize("counts", [True, False], ids=["cachestat", "mincore"])
def test_what_somebody_holds_can_not_be_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: bool
) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"x" * SIZE)
    image = Image.open(str(path))
    if not counts:

        def refuse(*_: int) -> None:
            raise OSError(errno.ENOSYS, "Function not implemented")

        monkeypatch.setattr(linux, "cached", refuse)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    address = linux.map_file(image.fd, PAGE)
    linux.populate(address, PAGE)
    with pytest.raises(ImageError, match="can't be emptied"):
        image.empty_cache()
    linux.unmap(address, PAGE)
    image.empty_cache()
    image.close()


def test_there_is_no_disk_behind_memory(tmp_path: Path) -> None:
    path = Path("/dev/shm") / f"flexmigrate-{os.getpid()}"
    path.write_bytes(b"x" * PAGE)
    try:
        image = Image.open(str(path))
        image.empty_cache()
        assert image.read(0, PAGE) == b"x" * PAGE
        image.close()
    finally:
        path.unlink()
