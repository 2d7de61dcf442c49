"""A source and the destinations that misbehave: what its operator and its clients see, and its end.

Each destination is a program in the folder `destinations`, named for its fault. It commits it on
the first connection and is faithful on later ones, so that what follows a fault can be seen, too.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from support.images import MIB, assert_same, blank_image, difference, random_image
from support.operator import ask, status, wait_until
from support.processes import Child, Children, flexmigrate
from support.raw_nbd import RawClient

PROGRAMS = Path(__file__).parent / "destinations"
SIZE = 4 * MIB
BLOCK = b"a client's" * 409 + b"write."  # 4096 bytes
STYLES = ("oldstyle", "newstyle")

# After this many seconds without progress on a request, the source gives an attempt up.
IMPATIENT = {"FLEXNBD_MS_REQUEST_LIMIT_SECS": "1"}

# Faults before the agreement, and what the `mirror` command is answered.
AT_FIRST = [
    ("refuses_connections", "failed to connect"),
    ("accepts_and_hangs", "failed to respond"),
    ("closes_at_once", "rejected"),
    ("says_hello_with_the_wrong_magic", "rejected"),
    ("says_hello_with_the_wrong_size", "size does not match local size"),
]

# Faults after it: the attempt ends, the migration goes on.
LATER = [
    "closes_after_hello",
    "closes_after_a_write_request",
    "closes_after_the_data_of_a_write",
    "closes_after_the_last_write",
    "answers_with_an_error",
    "answers_with_the_wrong_handle",
    "answers_with_the_wrong_magic",
    "hangs_after_a_write",
]


class Scene:
    """A source with an image and a client, and a destination that is to get the image."""

    def __init__(self, folder: Path, children: Children, connections: ExitStack) -> None:
        self.children = children
        self.connections = connections
        self.image = random_image(folder / "source.img", SIZE)
        self.original = random_image(folder / "original.img", SIZE)
        self.copy = blank_image(folder / "copy.img", SIZE)
        self.sock = folder / "source.sock"

    def serve(self, *, twistd: bool = False, env: Mapping[str, str] | None = None) -> Child:
        """Start the source and connect the client."""
        start = self.children.twistd if twistd else self.children.flexmigrate
        place = ("--addr", "127.0.0.1", "--port", "0", "--sock", str(self.sock))
        source = start("serve", *place, "--file", str(self.image), env=env)
        self.client = RawClient.to(*source.listening())
        self.connections.callback(self.client.close)
        return source

    def destination(self, name: str, *more: str, style: str = "newstyle") -> Child:
        """Start the destination *name*, and find out where it is."""
        program = str(PROGRAMS / f"{name}.py")
        destination = self.children.python(
            program, "127.0.0.1", "0", str(self.copy), *more, "--style", style
        )
        self.port = destination.wait_for(r"listening on 127\.0\.0\.1:(\d+)")[1]
        return destination

    def mirror(self, *more: str) -> CompletedProcess[bytes]:
        """Tell the source, as its operator would, to migrate to the destination, which can't say
        that it is one.
        """
        place = ("--addr", "127.0.0.1", "--port", self.port, "--handover", "plain")
        return flexmigrate("mirror", *place, "--sock", str(self.sock), *more)

    def starts_mirroring(self, *more: str) -> None:
        """Do so, and be told that it has begun."""
        answer = self.mirror(*more)
        assert answer.returncode == 0, answer
        assert b"Mirror started" in answer.stdout, answer

    def client_goes_on(self) -> None:
        """Write and read as if nothing had happened."""
        assert self.client.write(MIB, BLOCK) == 0
        assert self.client.read(MIB, len(BLOCK)) == BLOCK
        assert self.client.flush() == 0

    def is_at_rest(self) -> None:
        """Check that no migration is under way."""
        assert status(self.sock)["is_mirroring"] == "false"


@pytest.fixture
def scene(tmp_path: Path, children: Children) -> Iterator[Scene]:
    with ExitStack() as connections:
        yield Scene(tmp_path, children, connections)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("name", "answer"), AT_FIRST)
def test_a_fault_before_the_agreement_is_the_answer_and_ends_the_migration(
    scene: Scene, name: str, answer: str, style: str
) -> None:
    source = scene.serve()
    destination = scene.destination(name, style=style)

    refused = scene.mirror("--unlink")

    assert refused.returncode == 1, refused
    assert answer in (refused.stdout + refused.stderr).decode(), refused
    scene.is_at_rest()
    scene.client_goes_on()
    assert scene.image.exists()

    # It was asked for once, tried once; asked for again, it is tried again.
    if name == "refuses_connections":
        destination = scene.destination("does_everything_right", style=style)
    scene.starts_mirroring()
    source.expect_exit(0)
    destination.expect_exit(0)
    assert "connection 3" not in destination.lines
    assert_same(scene.image, scene.copy)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", LATER)
def test_a_fault_after_the_agreement_is_retried_until_all_is_well(
    scene: Scene, name: str, style: str
) -> None:
    source = scene.serve(env=IMPATIENT)
    destination = scene.destination(name, style=style)

    scene.starts_mirroring()
    destination.wait_for("connection 1")
    scene.client_goes_on()  # what is written between attempts must arrive, too

    destination.wait_for("connection 2")
    source.expect_exit(0)
    destination.expect_exit(0)
    destination.wait_for("complete")
    assert "connection 3" not in destination.lines
    assert_same(scene.image, scene.copy)
    assert scene.copy.read_bytes()[MIB : MIB + len(BLOCK)] == BLOCK


@pytest.mark.parametrize("name", LATER)
def test_while_it_is_retried_the_operator_sees_why_and_can_break_it(
    scene: Scene, name: str
) -> None:
    source = scene.serve(env=IMPATIENT)
    destination = scene.destination(name, "--always")
    scene.starts_mirroring("--unlink")
    destination.wait_for("connection 3")

    seen = wait_until(scene.sock, is_mirroring="true")
    assert seen["migration_error"]
    assert int(seen["migration_attempt"]) >= 2
    answer = flexmigrate("break", "--sock", str(scene.sock))

    assert (answer.returncode, b"mirror stopped" in answer.stdout) == (0, True), answer
    scene.is_at_rest()
    scene.client_goes_on()
    source.send(signal.SIGTERM)
    source.expect_exit(0)  # nothing was under way
    assert scene.image.exists()
    assert "complete" not in destination.lines


def test_sigterm_between_attempts_ends_the_source_with_1_and_keeps_the_image(scene: Scene) -> None:
    source = scene.serve()
    destination = scene.destination("closes_after_hello", "--always")
    scene.starts_mirroring("--unlink")
    destination.wait_for("connection 2")
    source.send(signal.SIGTERM)
    source.expect_exit(1)
    assert_same(scene.image, scene.original)


@pytest.mark.parametrize("style", STYLES)
def test_a_break_after_hello_ends_the_migration_and_another_can_be_asked_for(
    scene: Scene, style: str
) -> None:
    source = scene.serve()
    destination = scene.destination(
        "breaks_the_migration_after_hello", str(scene.sock), style=style
    )

    scene.starts_mirroring("--unlink")
    destination.wait_for("break was answered 0: mirror stopped")
    destination.wait_for("the source ended the connection")

    scene.is_at_rest()
    assert ask(scene.sock, "break")[1] == "Not mirroring"
    scene.client_goes_on()
    assert scene.image.exists()
    assert "connection 2" not in destination.lines

    scene.starts_mirroring()
    source.expect_exit(0)
    destination.expect_exit(0)
    assert_same(scene.image, scene.copy)


@pytest.mark.parametrize("twistd", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_sigterm_after_hello_ends_the_source_with_1_and_keeps_the_image(
    scene: Scene, style: str, twistd: bool
) -> None:
    source = scene.serve(twistd=twistd)
    destination = scene.destination("kills_the_source_after_hello", str(source.pid), style=style)

    scene.mirror("--unlink")  # its answer may be lost

    source.expect_exit(1)
    destination.wait_for("the source ended the connection")
    assert_same(scene.image, scene.original)
    assert difference(scene.image, scene.copy) is not None
    assert "connection 2" not in destination.lines


@pytest.mark.parametrize("twistd", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_a_destination_without_a_fault_gets_the_image_at_once(
    scene: Scene, style: str, twistd: bool
) -> None:
    source = scene.serve(twistd=twistd)
    scene.client_goes_on()
    destination = scene.destination("does_everything_right", style=style)
    scene.starts_mirroring()
    source.expect_exit(0)
    destination.expect_exit(0)
    assert "connection 2" not in destination.lines
    assert_same(scene.image, scene.copy)


def test_with_unlink_the_image_is_at_one_place_only_afterwards(scene: Scene) -> None:
    source = scene.serve()
    destination = scene.destination("does_everything_right")
    scene.starts_mirroring("--unlink")
    source.expect_exit(0)
    destination.expect_exit(0)
    assert not scene.image.exists()
    assert_same(scene.original, scene.copy)


def test_each_destination_is_run_by_a_test_here() -> None:
    one_of_a_kind = {
        "breaks_the_migration_after_hello",
        "kills_the_source_after_hello",
        "does_everything_right",
    }
    run = {name for name, _ in AT_FIRST} | set(LATER) | one_of_a_kind
    assert {program.stem for program in PROGRAMS.glob("*.py")} == run
