"""What becomes of a migration when somebody removes, renames, replaces or cuts an image meanwhile:
at either end, by every kind of handover, with real processes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flexmigrate.net.address import Address
from flexmigrate.wire.handover import State
from support.images import MIB, assert_same, blank_image, random_image
from support.journals import leave_committed, leave_owner, leave_prepared, state_of
from support.operator import ask, wait_until
from support.processes import Child, flexmigrate
from support.servers import SIZE, SLOWLY, Servers, stop


def remove(image: Path) -> None:
    image.unlink()


def rename(image: Path) -> None:
    image.rename(image.with_name("aside"))


def replace(image: Path) -> None:
    os.replace(blank_image(image.with_name("another"), SIZE), image)


def end_the_limit(servers: Servers) -> None:
    assert ask(servers.source_sock, "mirror_max_bps", "0") == (0, "updated")


def assert_no_traceback(*processes: Child) -> None:
    for each in processes:
        assert not any("Traceback" in line for line in each.lines), each.story()


LOSSES = [(remove, "removed"), (rename, "renamed"), (replace, "leads to another file")]


class TestAtTheDestination:
    @pytest.mark.parametrize("kind", ["session", "plain"])
    @pytest.mark.parametrize(("lose", "word"), LOSSES)
    def test_it_ends_with_one_and_the_source_serves_on(
        self, servers: Servers, kind: str, lose: Callable[[Path], None], word: str
    ) -> None:
        source, destination = servers.serve(), servers.listen()
        servers.start_mirroring_slowly("--unlink", "--handover", kind)
        lose(servers.copy)
        destination.wait_for(rf"ending with status 1: .*{word}")
        destination.expect_exit(1)
        wait_until(servers.source_sock, has_control="true", migration_attempt="2")
        assert servers.image.exists()
        stop(source, 1)
        assert_no_traceback(source, destination)

    @pytest.mark.parametrize(("lose", "word"), LOSSES)
    def test_it_is_found_before_it_is_prepared_however_late_it_was(
        self, servers: Servers, lose: Callable[[Path], None], word: str
    ) -> None:
        source, destination = servers.serve(), servers.listen()
        servers.start_mirroring(*SLOWLY, "--unlink")
        wait_until(servers.source_sock, migration_phase="copying")
        lose(servers.copy)
        end_the_limit(servers)
        destination.expect_exit(1)
        source.wait_for("attempt 1 failed")
        assert servers.image.exists()
        stop(source, 1)
        assert_no_traceback(source, destination)

    @pytest.mark.parametrize("to", [0, SIZE // 2, 2 * SIZE])
    def test_what_was_cut_or_lengthened_meanwhile_counts_for_nothing(
        self, servers: Servers, to: int
    ) -> None:
        source, destination = servers.serve(), servers.listen()
        servers.start_mirroring_slowly()
        os.truncate(servers.copy, to)
        destination.wait_for("somebody else has changed the size")
        source.wait_for("attempt 1 failed")
        source.wait_for("attempt 2 failed: .*somebody else has changed the size")
        os.truncate(servers.copy, SIZE)
        end_the_limit(servers)
        servers.complete(source, destination)
        assert_no_traceback(source, destination)

    def test_a_link_that_leads_elsewhere_by_now(self, servers: Servers) -> None:
        there = servers.folder / "pool"
        there.mkdir()
        servers.copy.rename(there / "copy")
        servers.copy.symlink_to(there / "copy")
        source, destination = servers.serve(), servers.listen()
        servers.start_mirroring_slowly()
        servers.copy.unlink()
        servers.copy.symlink_to(blank_image(servers.folder / "other", SIZE))
        destination.wait_for("ending with status 1: .*copy leads to another file by now")
        stop(source, 1)

    @pytest.mark.parametrize(("lose", "word"), LOSSES)
    def test_what_came_is_not_served_nor_called_canonical_without_its_file(
        self, servers: Servers, lose: Callable[[Path], None], word: str
    ) -> None:
        source, destination = servers.serve(), servers.listen()
        servers.start_mirroring()
        servers.complete(source, destination)
        lose(servers.copy)
        asked = flexmigrate("whose", str(servers.copy))
        assert asked.returncode == 4, asked
        assert b"was removed or renamed" in asked.stdout
        served = servers.start("serve", "-l", "127.0.0.1", "-p", "0", "-f", str(servers.copy))
        served.expect_exit(1)
        if lose is replace:
            served.wait_for("another file than the one that came from")
            assert flexmigrate("take", "--yes", str(servers.copy)).returncode == 0
            assert flexmigrate("whose", str(servers.copy)).returncode == 0


class TestAtTheSource:
    @pytest.mark.parametrize("action", [(), ("--unlink",)])
    @pytest.mark.parametrize(("lose", "word"), LOSSES)
    def test_a_migration_of_it_does_not_begin(
        self,
        servers: Servers,
        action: tuple[str, ...],
        lose: Callable[[Path], None],
        word: str,
    ) -> None:
        source, destination = servers.serve(), servers.listen()
        lose(servers.image)
        answer = servers.mirror(*action)
        assert answer.returncode == 1
        assert word.encode() in answer.stderr
        assert b"nothing is given away" in answer.stderr
        servers.client(source).read(0, 512)
        stop(source)
        stop(destination, 1)

    def test_a_copy_of_what_was_removed_can_be_had(self, servers: Servers) -> None:
        original = Path(shutil.copy(servers.image, servers.folder / "original"))
        source, destination = servers.serve(), servers.listen()
        servers.image.unlink()
        to = servers.place[1], servers.place[3]
        assert ask(servers.source_sock, "mirror", *to, "nothing")[0] == 0
        wait_until(servers.source_sock, last_migration="copied")
        stop(destination, 1)
        assert_same(original, servers.copy)
        stop(source)

    @pytest.mark.parametrize("kind", ["session", "plain"])
    @pytest.mark.parametrize(("lose", "word"), LOSSES)
    def test_one_that_is_lost_meanwhile_is_not_given_away_and_not_tried_again(
        self, servers: Servers, kind: str, lose: Callable[[Path], None], word: str
    ) -> None:
        source, destination = servers.serve(), servers.listen()
        waiting = servers.children.flexmigrate(
            *("mirror", *servers.place, "--sock", str(servers.source_sock), "--wait"),
            *(*SLOWLY, "--unlink", "--handover", kind),
        )
        wait_until(servers.source_sock, migration_phase="copying")
        lose(servers.image)
        end_the_limit(servers)
        waiting.expect_exit(1)
        waiting.wait_for(word)
        wait_until(servers.source_sock, is_mirroring="false", has_control="true")
        source.wait_for(f"the migration ended: .*{word}")
        assert state_of(servers.copy) is not State.OWNER
        servers.client(source).read(0, 512)
        stop(source)
        stop(destination, 1)
        assert_no_traceback(source, destination)

    def test_another_name_keeps_the_bytes_and_is_not_served(self, servers: Servers) -> None:
        link = servers.folder / "link"
        os.link(servers.image, link)
        source, destination = servers.serve(), servers.listen()
        servers.start_mirroring("--unlink")
        source.wait_for("has other names, too")
        source.expect_exit(0)
        destination.expect_exit(0)
        assert not servers.image.exists()
        assert_same(link, servers.copy)
        try:
            os.getxattr(link, "user.flexmigrate.handover")
        except OSError as error:
            pytest.skip(f"no extended attributes there: {error}")
        again = servers.start("serve", "-l", "127.0.0.1", "-p", "0", "-f", str(link))
        again.expect_exit(1)
        again.wait_for(f"{servers.image}.handover\\) says: done")
        assert flexmigrate("whose", str(link)).returncode == 3

    def test_another_file_of_its_name_is_kept_when_a_handover_is_settled(
        self, servers: Servers
    ) -> None:
        """The journal says that the file is to go, and means the one that it was about."""
        destination = servers.listen()
        address, port = destination.listening()
        stop(destination, 1)
        leave_owner(servers.copy)
        servers.marker.unlink()
        destination = servers.listen(port=port)
        to = Address.tcp(address, port)
        leave_committed(servers.image, to, unlink=True, file="1 of 1")
        source = servers.start("serve", "-l", "127.0.0.1", "-p", "0", "-f", str(servers.image))
        source.expect_exit(0)
        source.wait_for("is another file by now: it is kept")
        assert servers.image.stat().st_size == SIZE
        destination.expect_exit(0)


def test_the_file_that_came_first_is_kept_too(servers: Servers) -> None:
    """Removed between PREPARE and COMMIT: the source is told, and nobody owns nothing."""
    destination = servers.listen()
    address, port = destination.listening()
    stop(destination, 1)
    leave_prepared(servers.copy)
    servers.marker.unlink()
    destination = servers.listen(port=port)
    leave_committed(servers.image, Address.tcp(address, port))
    aside = servers.folder / "aside"
    servers.copy.rename(aside)
    source = servers.start("serve", "-l", "127.0.0.1", "-p", "0", "-f", str(servers.image))
    source.expect_exit(1)
    source.wait_for("not confirmed it: .*can't be taken over: .*was renamed")
    assert destination.running
    aside.rename(servers.copy)
    again = servers.start("serve", "-l", "127.0.0.1", "-p", "0", "-f", str(servers.image))
    again.expect_exit(0)
    destination.expect_exit(0)
    assert state_of(servers.copy) is State.OWNER
    assert_no_traceback(source, again, destination)


def test_what_a_plain_sender_may_have_given_away_stays_open(servers: Servers) -> None:
    destination = servers.listen()
    sender = servers.client(destination)
    data = random_image(servers.folder / "data", SIZE).read_bytes()
    for at in range(0, SIZE, MIB):
        assert sender.write(at, data[at : at + MIB]) == 0
    servers.copy.unlink()
    sender.say_goodbye()
    found = destination.wait_for(r"copy it from (/proc/\d+/fd/\d+)|ending with status 1")
    if found[1] is not None:  # else it was noticed before the sender said that it was done
        assert Path(found[1]).read_bytes() == data
        assert destination.running
        stop(destination, 1)
    else:
        destination.expect_exit(1)
