"""Two images that have bytes in common under different names: one of them can't be opened."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from flexmigrate.errors import ImageError
from flexmigrate.image import backing, places, range_locks
from flexmigrate.image.backing import MOST, Part, parts_of
from flexmigrate.image.file import Image
from flexmigrate.image.opening import try_opening
from support.images import MIB, random_image
from support.privileges import block_device, mounted, needs_root
from support.processes import Children, run

SIZE = 4 * MIB


@contextlib.contextmanager
def opened(path: Path, *, read_only: bool = False) -> Iterator[Image]:
    image = Image.open(str(path), read_only=read_only)
    try:
        yield image
    finally:
        image.close()


@contextlib.contextmanager
def loop(image: Path, offset: int = 0, size: int = 0) -> Iterator[Path]:
    """Make a loop device of a part of the image."""
    with block_device(image, offset=offset, size=size) as device:
        yield device


@contextlib.contextmanager
def partition(disk: Path, number: int, start: int, size: int) -> Iterator[Path]:
    """Tell the kernel of a partition, in bytes."""
    if shutil.which("addpart") is None:
        pytest.skip("there is no addpart")
    sectors = (str(start // 512), str(size // 512))
    made = subprocess.run(["addpart", str(disk), str(number), *sectors], capture_output=True)
    if made.returncode:
        pytest.skip(f"no partition can be made: {made.stderr!r}")
    try:
        yield Path(f"{disk}p{number}")
    finally:
        subprocess.run(["delpart", str(disk), str(number)], check=True)


def refuse_each_other(one: Path, other: Path) -> None:
    """Check that of two images one can be opened, whichever is first, unless both only read."""
    for first, second in ((one, other), (other, one)):
        for modes in ((False, False), (False, True), (True, False)):
            with opened(first, read_only=modes[0]):
                with pytest.raises(ImageError, match=rf"{second}[: ].*(in use|busy)"):
                    Image.open(str(second), read_only=modes[1])
                with pytest.raises(ImageError, match=rf"{second}[: ].*(in use|busy)"):
                    try_opening(str(second), read_only=modes[1])
            with opened(second, read_only=modes[1]):
                pass  # the first is let go of
        with opened(first, read_only=True), opened(second, read_only=True):
            try_opening(str(second), read_only=True)


def leave_each_other_alone(one: Path, other: Path) -> None:
    for first, second in ((one, other), (other, one)):
        with opened(first):
            try_opening(str(second), read_only=False)
            with opened(second):
                pass


@needs_root
class TestNamesOfTheSameBytes:
    @pytest.fixture
    def image(self, tmp_path: Path) -> Path:
        return random_image(tmp_path / "disk.img", SIZE)

    def test_a_file_and_its_loop_device(self, image: Path) -> None:
        with loop(image) as device:
            refuse_each_other(image, device)

    def test_a_file_and_a_loop_device_of_a_part(self, image: Path) -> None:
        with loop(image, offset=MIB, size=MIB) as device:
            refuse_each_other(image, device)

    def test_two_loop_devices_of_a_file(self, image: Path) -> None:
        with loop(image) as one, loop(image) as other:
            refuse_each_other(one, other)

    def test_two_loop_devices_that_overlap(self, image: Path) -> None:
        with loop(image, size=2 * MIB) as one, loop(image, offset=2 * MIB - 4096) as other:
            refuse_each_other(one, other)

    def test_two_loop_devices_that_do_not(self, image: Path) -> None:
        with loop(image, size=2 * MIB) as one, loop(image, offset=2 * MIB) as other:
            leave_each_other_alone(one, other)

    def test_a_disk_and_its_partition(self, image: Path) -> None:
        with loop(image) as disk, partition(disk, 1, MIB, MIB) as part:
            refuse_each_other(disk, part)
            refuse_each_other(image, part)

    def test_two_partitions_of_a_disk(self, image: Path) -> None:
        with contextlib.ExitStack() as made:
            disk = made.enter_context(loop(image))
            one, other = (
                made.enter_context(partition(disk, number, number * MIB, MIB)) for number in (1, 2)
            )
            leave_each_other_alone(one, other)

    def test_a_partition_and_a_loop_device_of_its_bytes(self, image: Path) -> None:
        with loop(image) as disk, partition(disk, 1, MIB, MIB) as part:
            with loop(image, offset=2 * MIB - 4096) as other:
                refuse_each_other(part, other)
            with loop(image, offset=2 * MIB) as other:
                leave_each_other_alone(part, other)

    def test_a_loop_device_of_a_loop_device(self, image: Path) -> None:
        with loop(image, offset=MIB) as one, loop(one, offset=MIB) as other:
            refuse_each_other(image, other)

    def test_a_file_whose_loop_device_is_mounted(self, image: Path) -> None:
        if shutil.which("mke2fs") is None:
            pytest.skip("there is no mke2fs")
        subprocess.run(["mke2fs", "-q", "-F", image], check=True)
        with loop(image) as device, loop(image, size=MIB) as other, mounted(device):
            for path in (image, other):
                for opening in (Image.open, try_opening):
                    with pytest.raises(ImageError, match=f"{device} has the same bytes"):
                        opening(str(path), read_only=False)
                with opened(path, read_only=True):
                    pass

    def test_qemu_has_the_file(self, image: Path, tmp_path: Path, children: Children) -> None:
        if shutil.which("qemu-nbd") is None:
            pytest.skip("there is no qemu-nbd")
        pid = tmp_path / "pid"
        words = ("-f", "raw", "-t", "-k", str(tmp_path / "sock"), "--pid-file", str(pid))
        child = children.start("qemu-nbd", *words, str(image))
        while not pid.exists():
            assert child.running, child.story()
            os.sched_yield()
        with loop(image) as device:
            for read_only in (False, True):
                for opening in (Image.open, try_opening):
                    with pytest.raises(ImageError, match=r"in use by QEMU.*qemu-nbd"):
                        opening(str(device), read_only=read_only)

    def test_qemu_is_kept_from_the_file(self, image: Path) -> None:
        if shutil.which("qemu-io") is None:
            pytest.skip("there is no qemu-io")
        with loop(image) as device, opened(device):
            found = run("qemu-io", "-f", "raw", "-c", "read 0 512", str(image))
            assert b"Is another process using the image" in found.stderr + found.stdout
        assert run("qemu-io", "-f", "raw", "-c", "read 0 512", str(image)).returncode == 0

    def test_a_file_below_that_is_gone_is_no_concern(self, image: Path) -> None:
        with loop(image) as device:
            image.unlink()
            with opened(device) as found:
                assert found.unlocked is None

    def test_a_file_below_that_may_not_be_opened_is_told(self, image: Path) -> None:
        real_open = os.open

        def refusing(path: str, *rest: int) -> int:
            if path == str(image):
                raise PermissionError(13, "Permission denied")
            return real_open(path, *rest)

        refused = mock.patch.object(range_locks.os, "open", refusing)
        with loop(image) as device, refused, opened(device) as found:
            assert found.unlocked == f"{image}, which lies below it: Permission denied"

    def test_nothing_stays_open(self, image: Path) -> None:
        before = len(os.listdir("/proc/self/fd"))
        with loop(image) as device:
            with opened(image), contextlib.suppress(ImageError):
                Image.open(str(device), read_only=True)
            with opened(device), contextlib.suppress(ImageError):
                Image.open(str(image), read_only=True)
        assert len(os.listdir("/proc/self/fd")) == before


class TestSysfs:
    """A made-up one, for what this machine doesn't have."""

    @pytest.fixture
    def sysfs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        sysfs = tmp_path / "sysfs"
        sysfs.mkdir()
        monkeypatch.setattr(places, "SYSFS", str(sysfs))
        return sysfs

    def device(self, folder: Path, name: str) -> Path:
        folder.mkdir(parents=True)
        (folder / "uevent").write_text(f"DEVTYPE=disk\nDEVNAME={name}\n")
        return folder

    def status(self, number: int) -> os.stat_result:
        return mock.Mock(st_mode=0o060660, st_rdev=number)

    def test_a_volume_uses_something_of_what_is_below_it(self, sysfs: Path) -> None:
        volume = self.device(sysfs / "252:0", "dm-0")
        for number, name in enumerate(("null-nobody-has-1", "null-nobody-has-2")):
            below = self.device(sysfs.parent / name, name)
            (volume / "slaves").mkdir(exist_ok=True)
            (volume / "slaves" / f"{number}").symlink_to(below)
        found = list(parts_of("/dev/dm-0", self.status(os.makedev(252, 0))))
        assert found == [
            Part("/dev/dm-0", 0, MOST, is_whole=True),
            Part("/dev/null-nobody-has-1", 0, MOST, is_known=False),
            Part("/dev/null-nobody-has-2", 0, MOST, is_known=False),
        ]

    def test_a_partition_of_a_disk(self, sysfs: Path) -> None:
        disk = self.device(sysfs.parent / "disk", "null-nobody-has")
        part = self.device(disk / "disk1", "null-nobody-has-1")
        for name, text in (("partition", "1"), ("start", "2048"), ("size", "8")):
            (part / name).write_text(f"{text}\n")
        (sysfs / "8:1").symlink_to(part)
        found = list(parts_of("/dev/sda1", self.status(os.makedev(8, 1))))[1:]
        assert found == [Part("/dev/null-nobody-has", MIB, MIB + 4096)]

    def test_without_it_nothing_is_known(self, sysfs: Path) -> None:
        assert len(list(parts_of("/dev/sda", self.status(os.makedev(8, 0))))) == 1
        sysfs.rmdir()
        assert not list(backing.loop_devices())


def test_volumes_of_one_disk_have_it_together_and_nobody_reads_it_beside_them(
    tmp_path: Path,
) -> None:
    disk = random_image(tmp_path / "disk", MIB)
    volumes = [random_image(tmp_path / name, MIB) for name in "ab"]

    def parts(path: str, status: os.stat_result) -> Iterator[Part]:
        yield Part(path, 0, MOST, is_whole=True)
        if path != str(disk):
            yield Part(str(disk), 0, MOST, is_known=False)

    with mock.patch.object(backing, "parts_of", parts):
        with opened(volumes[0]), opened(volumes[1]), pytest.raises(ImageError, match="in use"):
            Image.open(str(disk), read_only=True)
        with opened(disk, read_only=True), pytest.raises(ImageError, match=f"{disk}, which lies"):
            Image.open(str(volumes[0]))
