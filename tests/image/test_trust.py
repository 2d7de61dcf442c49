"""What is believed of a filesystem about holes and zeroes, on real ones."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexmigrate.image import probe as probes
from flexmigrate.image import trust
from flexmigrate.image.extents import Extent
from flexmigrate.image.file import Image
from flexmigrate.image.filesystems import DOUBTED, KNOWN, Filesystem, filesystem_of
from flexmigrate.image.kernel import calls as linux
from flexmigrate.image.probe import Probed, probe
from flexmigrate.image.trust import Trust, judge
from support.faulty_filesystem import FaultyFilesystem, faulty_filesystem
from support.images import blank_image
from support.privileges import filesystem_in_a_file, mounted, needs_root

PAGE = linux.PAGE
SIZE = 64 * PAGE
RIGHT = Probed(knows_dirty=True, zeroes=True)


@pytest.fixture
def lazy(tmp_path: Path) -> Iterator[FaultyFilesystem]:
    """A FUSE filesystem with write-back, which calls dirty pages a hole."""
    with faulty_filesystem(tmp_path / "mounted", write_back=True) as mounted:
        yield mounted


def fails_with(number: int) -> pytest.RaisesExc[OSError]:
    """Expect this error."""
    return pytest.raises(OSError, check=lambda error: error.errno == number)


def opened(path: Path, *, read_only: bool = False) -> Image:
    return Image.open(str(path), read_only=read_only)


class TestTheJudgement:
    @pytest.mark.parametrize("magic", KNOWN)
    def test_a_known_filesystem_is_believed_where_a_probe_agrees(self, magic: int) -> None:
        known = Filesystem(KNOWN[magic][0], magic)
        assert judge(known, RIGHT) == Trust(known.name, holes=True, zeroes=True)
        lies = judge(known, Probed(knows_dirty=False, zeroes=False))
        assert (lies.holes, lies.zeroes) == (False, False)
        assert "a probe shows" in lies.doubt

    def test_without_a_probe_only_its_zeroes_are(self) -> None:
        found = judge(Filesystem("ext4", linux.EXT4_MAGIC), "Permission denied")
        assert (found.holes, found.zeroes) == (False, True)
        assert found.doubt == "no probe could be made beside the image: Permission denied"

    @pytest.mark.parametrize("magic", [*DOUBTED, 0x1234, None])
    def test_others_are_not_whatever_a_probe_finds(self, magic: int | None) -> None:
        trust = judge(Filesystem("other", magic), RIGHT)
        assert (trust.holes, trust.zeroes) == (False, True)
        assert trust.doubt
        trust = judge(Filesystem("other", magic), "Permission denied")
        assert (trust.holes, trust.zeroes) == (False, False)


class TestKnownFilesystems:
    def test_the_one_in_memory(self) -> None:
        fd = os.open("/dev/shm", os.O_RDONLY)
        try:
            assert filesystem_of(fd) == Filesystem("tmpfs", linux.TMPFS_MAGIC)
        finally:
            os.close(fd)
        assert probe("/dev/shm", os.stat("/dev/shm").st_dev) == RIGHT

    @needs_root
    @pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
    def test_those_on_disks(self, tmp_path: Path, kind: str) -> None:
        with filesystem_in_a_file(tmp_path / "disk", kind) as folder:
            path = blank_image(folder / "image", SIZE)
            image = opened(path)
            try:
                assert image.trust == Trust(kind, holes=True, zeroes=True)
                image.write(b"x", 5 * PAGE)
                (data,) = [each for each in image.extents(0, SIZE) if each.data]
                assert (data.offset, data.end <= 6 * PAGE) == (5 * PAGE, True)
            finally:
                image.close()
            assert set(os.listdir(folder)) - {"lost+found"} == {"image"}

    @needs_root
    def test_one_that_nobody_can_write_to_needs_no_probe(self, tmp_path: Path) -> None:
        with filesystem_in_a_file(tmp_path / "disk", "ext4") as folder:
            path = blank_image(folder / "image", SIZE)
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
            image = opened(path, read_only=True)
            try:
                assert image.trust == Trust("ext4", holes=True, zeroes=True)
                assert list(image.extents(0, SIZE)) == [Extent(0, SIZE, data=False)]
            finally:
                image.close()

    @needs_root
    def test_who_only_reads_needs_no_probe_where_none_is_allowed(self, tmp_path: Path) -> None:
        blank_image(tmp_path / "image", SIZE)
        with mounted("--bind", tmp_path, "-o", "ro") as folder:
            image = opened(folder / "image", read_only=True)
            try:
                assert image.trust == Trust(image.trust.filesystem, holes=True, zeroes=True)
                assert list(image.extents(0, SIZE)) == [Extent(0, SIZE, data=False)]
            finally:
                image.close()

    @pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC])
    def test_who_writes_needs_one(
        self, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refused(folder: str, device: int) -> Probed:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(trust, "probe", refused)
        path = blank_image(tmp_path / "image", SIZE)
        for read_only in (False, True):
            image = opened(path, read_only=read_only)
            try:
                assert image.trust.holes is (read_only and number != errno.ENOSPC)
            finally:
                image.close()

    @needs_root
    def test_and_of_a_filesystem_that_is_not_known_nothing_is_believed(
        self, lazy: FaultyFilesystem
    ) -> None:
        blank_image(lazy.folder / "image", SIZE)
        with mounted("--bind", lazy.folder, "-o", "ro") as folder:
            image = opened(folder / "image", read_only=True)
            try:
                assert not image.trust.holes
            finally:
                image.close()

    @needs_root
    def test_what_an_overlay_is_on_can_not_be_seen(self, tmp_path: Path) -> None:
        folders = {name: tmp_path / name for name in ("lowerdir", "upperdir", "workdir")}
        for each in folders.values():
            each.mkdir()
        options = ",".join(f"{name}={each}" for name, each in folders.items())
        with mounted("-t", "overlay", "overlay", "-o", options) as folder:
            image = opened(blank_image(folder / "image", SIZE))
            try:
                assert (image.trust.filesystem, image.trust.holes) == ("overlay", False)
            finally:
                image.close()


class TestAFilesystemThatForgetsWhatIsDirty:
    def test_a_probe_finds_out(self, lazy: FaultyFilesystem) -> None:
        found = probe(str(lazy.folder), lazy.folder.stat().st_dev)
        assert found == Probed(knows_dirty=False, zeroes=True)
        assert os.listdir(lazy.folder) == []

    def test_zeroes_over_data_are_written(self, lazy: FaultyFilesystem) -> None:
        image = opened(blank_image(lazy.folder / "image", SIZE))
        try:
            assert not image.trust.holes
            image.write(b"x" * PAGE, PAGE)
            image.write(bytes(PAGE), PAGE)
            assert image.read(PAGE, PAGE) == bytes(PAGE)
            image.write(b"x" * PAGE, 2 * PAGE)
            image.zero(2 * PAGE, PAGE, may_punch=True)
            assert image.read(2 * PAGE, PAGE) == bytes(PAGE)
        finally:
            image.close()

    def test_nothing_is_told_to_be_a_hole(self, lazy: FaultyFilesystem) -> None:
        image = opened(blank_image(lazy.folder / "image", SIZE))
        try:
            for zeroed in (False, True):
                if zeroed:
                    image.zero(0, SIZE, may_punch=True)
                assert not image.may_have_holes
                assert list(image.extents(0, SIZE)) == [Extent(0, SIZE, data=True)]
                assert not image.is_hole(bytes(PAGE), 0)
                assert image.next_data(PAGE, SIZE) == PAGE
        finally:
            image.close()

    def test_an_image_whose_folder_is_elsewhere_is_on_its_own_filesystem(
        self, lazy: FaultyFilesystem, tmp_path: Path
    ) -> None:
        blank_image(lazy.folder / "image", SIZE)
        path = tmp_path / "image"
        path.touch()
        subprocess.run(["mount", "--bind", lazy.folder / "image", path], check=True)
        try:
            image = opened(path)
            try:
                assert "fuse" in image.trust.filesystem
                assert (image.trust.holes, image.trust.zeroes) == (False, False)
                image.write(b"x" * PAGE, 0)
                with pytest.raises(OSError, match="faster than by writing"):
                    image.zero(0, PAGE, may_punch=True, fast_only=True)
                image.zero(0, PAGE, may_punch=True)
                assert image.read(0, PAGE) == bytes(PAGE)
            finally:
                image.close()
        finally:
            subprocess.run(["umount", "--lazy", path], check=True)


class TestAFilesystemThatOnlySaysToZero:
    @pytest.fixture
    def idle(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let fallocate succeed and do nothing."""
        monkeypatch.setattr(linux, "fallocate", lambda *_: None)

    @pytest.mark.usefixtures("idle")
    def test_a_probe_finds_out_and_zeroes_are_written(self, tmp_path: Path) -> None:
        image = opened(blank_image(tmp_path / "image", SIZE))
        try:
            assert not image.trust.zeroes
            image.write(b"x" * PAGE, PAGE)
            image.zero(0, SIZE, may_punch=True)
            assert image.read(0, SIZE) == bytes(SIZE)
        finally:
            image.close()

    def test_one_that_can_not_zero_is_no_liar(self, tmp_path: Path) -> None:
        with faulty_filesystem(tmp_path / "mounted", fallocate=False) as plain:
            assert probe(str(plain.folder), plain.folder.stat().st_dev).zeroes


class TestAProbe:
    def test_it_leaves_nothing_behind_where_files_need_names(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(probes.os, "O_TMPFILE", os.O_DIRECTORY)  # as old kernels take it
        assert probe(str(tmp_path), tmp_path.stat().st_dev) == RIGHT
        assert os.listdir(tmp_path) == []

    def test_it_is_made_on_the_image_s_own_filesystem(self, tmp_path: Path) -> None:
        with fails_with(errno.EXDEV):
            probe(str(tmp_path), -1)

    def test_a_full_filesystem_is_no_proof(self, tmp_path: Path) -> None:
        with faulty_filesystem(tmp_path / "mounted") as full:
            full.fail("write", error=errno.ENOSPC)
            with fails_with(errno.ENOSPC):
                probe(str(full.folder), full.folder.stat().st_dev)
