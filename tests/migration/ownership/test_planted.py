"""What others have put where a journal or a marker is looked for: nobody acts on it, and nobody
hangs.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from flexmigrate.image import disk as disks
from flexmigrate.image.disk import SYSTEM, UntrustedFile
from flexmigrate.migration.ownership import journal
from flexmigrate.migration.ownership.journal import Record
from flexmigrate.migration.ownership.status import look
from flexmigrate.wire.handover import State
from support.privileges import block_device, needs_root
from support.processes import Children, flexmigrate

SIZE = 8192
NOBODY, SOMEBODY = 65534, 12345

Plant = Callable[[Path], object]


def given_away() -> bytes:
    """The journal that would have a server remove its image."""
    return journal.encode(Record(State.DONE, session=b"s" * 16, size=SIZE, unlink=True))


def a_file(path: Path) -> None:
    path.write_bytes(given_away())
    os.chown(path, NOBODY, NOBODY)


def one_that_all_may_write_to(path: Path) -> None:
    path.write_bytes(given_away())
    path.chmod(0o666)


def one_that_a_group_may_write_to(path: Path) -> None:
    path.write_bytes(given_away())
    path.chmod(0o664)


def a_link(path: Path) -> None:
    path.with_name("elsewhere").write_bytes(given_away())
    path.symlink_to(path.with_name("elsewhere"))


def a_link_to_nothing(path: Path) -> None:
    path.symlink_to(path.with_name("nothing"))


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.mkdir()


def a_device(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))


def a_second_name(path: Path) -> None:
    """Of a record that is ours, about another image."""
    another = path.with_name("another.handover")
    another.write_bytes(given_away())
    os.link(another, path)


PLANTED: list[tuple[Plant, str]] = [
    (a_file, "belongs to user 65534"),
    (one_that_all_may_write_to, r"may write to it \(mode 0666\)"),
    (one_that_a_group_may_write_to, r"may write to it \(mode 0664\)"),
    (a_link, "it is a symbolic link"),
    (a_link_to_nothing, "it is a symbolic link"),
    (a_fifo, "it is a FIFO"),
    (a_folder, "it is a folder"),
    (a_device, "it is a device"),
    (a_second_name, "it has a second name"),
]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image in a folder like /tmp."""
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o1777)
    path = folder / "disk.img"
    path.write_bytes(b"\1" * SIZE)
    return path


@needs_root
@pytest.mark.parametrize("suffix", [".handover", ".INCOMPLETE"])
@pytest.mark.parametrize(("plant", "fault"), PLANTED)
class TestPlanted:
    def test_nobody_looks_at_it(self, image: Path, plant: Plant, fault: str, suffix: str) -> None:
        path = image.with_name(image.name + suffix)
        plant(path)
        with pytest.raises(UntrustedFile, match=f"{path} can't be trusted: .*{fault}"):
            look(str(image))


@needs_root
@pytest.mark.parametrize(
    ("plant", "fault"), [each for each in PLANTED if each[0] in (a_file, a_fifo, a_link)]
)
@pytest.mark.parametrize(
    "words",
    [
        "serve -l 127.0.0.1 -p 0 -f",
        "listen -l 127.0.0.1 -p 0 -f",
        "whose",
        "take --yes",
        "release --yes",
    ],
)
def test_every_command_refuses(image: Path, plant: Plant, fault: str, words: str) -> None:
    path = image.with_name("disk.img.handover")
    plant(path)
    done = flexmigrate(*words.split(), str(image))
    assert done.returncode == 1
    said = (done.stdout + done.stderr).decode()
    assert f"{path} can't be trusted: it" in said
    assert "rm " in said
    assert "Traceback" not in said
    assert image.read_bytes() == b"\1" * SIZE


@needs_root
class TestWhoMayWriteToTheImage:
    """Records of those who could do as much to the image itself."""

    def test_its_owner(self, image: Path) -> None:
        a_file(image.with_name("disk.img.handover"))
        os.chown(image, NOBODY, -1)
        assert look(str(image)).state is State.DONE

    def test_a_member_of_a_group_that_may(self, image: Path) -> None:
        a_file(image.with_name("disk.img.handover"))
        group = pwd.getpwuid(NOBODY).pw_gid
        os.chown(image, -1, group)
        with pytest.raises(UntrustedFile, match="may not write to the image"):
            look(str(image))
        image.chmod(0o660)
        assert look(str(image)).state is State.DONE

    def test_no_member_of_another_group(self, image: Path) -> None:
        a_file(image.with_name("disk.img.handover"))
        image.chmod(0o666)
        with pytest.raises(UntrustedFile, match="may not write to the image"):
            look(str(image))

    def test_a_user_whom_nobody_knows_is_in_no_group(self, image: Path) -> None:
        path = image.with_name("disk.img.handover")
        a_file(path)
        os.chown(path, 54321, 54321)
        os.chown(image, -1, 54321)
        image.chmod(0o660)
        with pytest.raises(UntrustedFile, match="belongs to user 54321"):
            look(str(image))

    @pytest.mark.parametrize("mode", [0o755, 0o775, 0o1777])
    def test_the_owner_of_a_folder_that_is_his_alone(self, image: Path, mode: int) -> None:
        path = image.with_name("disk.img.handover")
        a_file(path)
        image.unlink()  # as a source does that has given it away
        os.chown(image.parent, NOBODY, -1)
        image.parent.chmod(mode)
        if mode == 0o755:
            assert look(str(image)).state is State.DONE
        else:
            with pytest.raises(UntrustedFile, match=f"user {NOBODY}"):
                look(str(image))


@needs_root
def test_the_doctor_tells_of_it(image: Path) -> None:
    a_file(image.with_name("disk.img.handover"))
    done = flexmigrate("doctor", "serve", "-l", "127.0.0.1", "-p", "0", "-f", str(image))
    assert done.returncode == 1
    assert b"belongs to user 65534" in done.stdout


@needs_root
class TestOurs:
    def put(self, image: Path, user: int) -> None:
        path = image.with_name("disk.img.handover")
        journal.store(SYSTEM, str(path), Record(State.OWNER, session=b"s" * 16))
        os.chown(path, user, -1)

    def test_those_of_the_image_s_owner_are_taken(self, image: Path) -> None:
        os.chown(image, SOMEBODY, -1)
        self.put(image, SOMEBODY)
        assert look(str(image)).state is State.OWNER
        self.put(image, NOBODY)
        with pytest.raises(UntrustedFile):
            look(str(image))

    def test_a_copy_with_hard_links_is_taken_where_nobody_else_can_make_them(
        self, image: Path
    ) -> None:
        image.parent.chmod(0o755)
        self.put(image, 0)
        os.link(f"{image}.handover", image.with_name("snapshot"))
        assert look(str(image)).state is State.OWNER

    def test_what_is_written_is_ours_whoever_has_prepared_what(self, image: Path) -> None:
        for name in (".new", ".probe", ".probe.new"):
            a_file(image.with_name(f"disk.img.handover{name}"))
        done = Children()
        with done:
            listening = done.flexmigrate("listen", "-l", "127.0.0.1", "-p", "0", "-f", str(image))
            listening.listening()
        found = os.lstat(image.with_name("disk.img.INCOMPLETE"))
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (os.geteuid(), 0o644)

    def test_the_state_folder_of_devices_is_ours(
        self, image: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        state = image.parent / "state"
        (state / "devices").mkdir(parents=True)
        monkeypatch.setenv("FLEXMIGRATE_STATE_DIR", str(state))
        with block_device(image) as device:
            look(str(device))
            for folder in (state, state / "devices"):
                os.chown(folder, NOBODY, -1)
                with pytest.raises(UntrustedFile, match=f"{folder} can't be trusted"):
                    look(str(device))
                os.chown(folder, 0, -1)
                folder.chmod(0o777)
                with pytest.raises(UntrustedFile, match="everybody may write to it"):
                    look(str(device))
                folder.chmod(0o755)

    def test_a_file_that_is_swapped_between_two_looks_is_not_read(self, image: Path) -> None:
        path = image.with_name("disk.img.handover")
        self.put(image, 0)

        class Swapping:
            """Puts something else there just before it is opened."""

            def __getattr__(self, name: str) -> object:
                return getattr(SYSTEM, name)

            def open(self, name: str, flags: int) -> int:
                path.unlink()
                a_fifo(path)
                return os.open(name, flags)

        swapping: disks.Disk = Swapping()  # type: ignore[assignment]
        with pytest.raises(UntrustedFile, match="it is a FIFO"):
            disks.read(swapping, str(path), 100)
