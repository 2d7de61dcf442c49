"""``whose``, ``take`` and ``release`` as a human uses them, on the journals of a real folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flexmigrate.image.disk import SYSTEM
from flexmigrate.migration.ownership import journal
from flexmigrate.migration.ownership.journal import Record
from flexmigrate.wire.handover import State
from support.processes import flexmigrate, run, script

A = bytes(range(16))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096))
    return path


def write(path: Path, state: State) -> None:
    journal.store(SYSTEM, str(path), Record(state, session=A, peer="host-b:/disk"))


def beside(image: Path) -> Path:
    return image.with_name(f"{image.name}.handover")


def whose(*words: str | Path) -> tuple[int, str]:
    answer = flexmigrate("whose", *map(str, words))
    return answer.returncode, (answer.stdout + answer.stderr).decode()


def test_the_exit_status_is_the_answer(image: Path) -> None:
    assert whose(image)[0] == 0
    for state, status in ((State.SENDING, 0), (State.COMMITTED, 3), (State.PREPARED, 4)):
        write(beside(image), state)
        found, text = whose(image)
        assert found == status
        assert text.count("\n") == 1
        assert "host-b:/disk" in text


def test_a_path_at_which_nothing_is(image: Path) -> None:
    missing = image.with_name("disk.ing")
    for command in (("whose",), ("take", "--yes"), ("release", "--yes")):
        done = flexmigrate(*command, str(missing))
        assert (done.returncode, done.stdout) == (1, b"")
        assert f"{missing}: there is no such image".encode() in done.stderr
    # Of one that was unlinked once it was elsewhere, the journal tells.
    write(beside(image), State.DONE)
    image.unlink()
    assert whose(image)[0] == 3


def test_the_other_journal_tells_the_rest(image: Path, tmp_path: Path) -> None:
    write(beside(image), State.PREPARED)
    peer = tmp_path / "peer"
    for state, status in ((State.SENDING, 3), (State.COMMITTED, 0), (State.DONE, 0)):
        write(peer, state)
        assert whose(image, "--peer-journal", peer)[0] == status


def test_for_programs_in_json(image: Path) -> None:
    write(beside(image), State.COMMITTED)
    status, text = whose(image, "--json")
    answer = json.loads(text)
    assert status == 3
    assert (answer["canonical"], answer["state"]) == ("other", "committed")
    assert answer["image"] == str(image)


def test_what_cannot_be_trusted_is_an_error(image: Path) -> None:
    beside(image).write_text("{")
    status, text = whose(image)
    assert status == 1
    assert "can't be trusted" in text
    assert whose(image, "--peer-journal", image.with_name("none"))[0] == 1


def test_options_that_contradict_each_other_are_refused(image: Path) -> None:
    for words in (
        ("--peer", "127.0.0.1:1", "--peer-journal", "x"),
        ("--peer", "localhost:1"),
        ("--peer", "127.0.0.1"),
        ("--remote-export", "disk"),
    ):
        assert whose(image, *words)[0] == 2


def test_a_human_is_told_and_asked_before_anything_is_done(image: Path) -> None:
    write(beside(image), State.COMMITTED)
    before = beside(image).read_bytes()
    for answer in (b"", b"no\n", b"y\n"):
        refused = flexmigrate("take", str(image), stdin=answer)
        assert refused.returncode == 1
        assert b"there are two owners" in refused.stdout
        assert beside(image).read_bytes() == before
    taken = flexmigrate("take", str(image), stdin=b"yes\n")
    assert taken.returncode == 0, taken
    assert whose(image)[0] == 0
    assert flexmigrate("release", "--yes", str(image)).returncode == 0
    status, text = whose(image)
    assert status == 3
    assert "was owner" in text


def test_without_a_peer_no_reactor_is_loaded(image: Path) -> None:
    program = (
        "import sys; from flexmigrate.cli.main import main; "
        f"main(['whose', {str(image)!r}]); "
        "sys.exit([name for name in sys.modules if name.startswith('twisted')] != [])"
    )
    python = str(Path(script("flexmigrate")).with_name("python"))
    assert run(python, "-c", program).returncode == 0
