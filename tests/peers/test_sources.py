"""A destination and the sources that misbehave: what is forgotten, what is kept, and its end.

Each source is a program in the folder `sources`, named for its fault. After it comes one without a
fault, to see that the destination has taken no harm.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from support.images import MIB, assert_same, blank_image, random_image
from support.operator import wait_until
from support.processes import Child, Children

PROGRAMS = Path(__file__).parent / "sources"
SIZE = 4 * MIB
STYLES = ((), ("--oldstyle",))

# Each with the line that it ends with, and what else it needs to know.
BEYOND = "was told that it is out of range, and the connection lives"
UNFINISHED = [
    ("closes_after_connecting", "closed after connecting", ()),
    ("closes_after_hello", "closed after hello", ()),
    ("closes_after_a_write_header", "closed after a write header", ()),
    ("closes_in_the_middle_of_data", "closed in the middle of data", ()),
    ("closes_after_the_data", "closed after the data", ()),
    ("leaves_out_the_last_block", "the destination ended the connection", ()),
    ("sends_a_bare_disc", "the destination ended the connection", ()),
    ("sends_an_http_request", "the destination ended the connection", ()),
    ("sends_garbage", "the destination ended the connection", ()),
    ("sends_garbage_after_the_data", "the destination ended the connection", ()),
    ("writes_out_of_range", BEYOND, (str(SIZE),)),
    ("writes_out_of_range", BEYOND, (str(SIZE - 2048),)),
    ("writes_out_of_range", BEYOND, (str(2**64 - 4096),)),
]


class Scene:
    """A destination with an empty image, and the image that sources have for it."""

    def __init__(self, folder: Path, children: Children) -> None:
        self.children = children
        self.image = random_image(folder / "source.img", SIZE)
        self.copy = blank_image(folder / "copy.img", SIZE)
        self.marker = folder / "copy.img.INCOMPLETE"
        self.sock = folder / "destination.sock"

    def listen(self, *more: str, twistd: bool = False) -> Child:
        """Start the destination."""
        start = self.children.twistd if twistd else self.children.flexmigrate
        place = ("--addr", "127.0.0.1", "--port", "0", "--sock", str(self.sock))
        destination = start("listen", *place, "--file", str(self.copy), *more)
        self.address, self.port = destination.listening()
        return destination

    def source(self, name: str, *more: str) -> Child:
        """Start the source *name*."""
        program = str(PROGRAMS / f"{name}.py")
        return self.children.python(program, self.address, str(self.port), str(self.image), *more)

    def waits_as_if_nothing_had_come(self, destination: Child) -> None:
        """Check that the attempt is over and forgotten, and the image known to be incomplete."""
        seen = wait_until(self.sock, listening_phase="waiting", num_clients="0")
        assert seen["has_control"] == "false"
        assert seen.get("covered_bytes", "0") == "0"
        assert destination.running
        assert self.marker.exists()

    def takes_a_whole_image(self, destination: Child) -> None:
        """Send the image as it should be, and see that the destination owns it."""
        source = self.source("does_everything_right")
        source.wait_for("the destination ended the connection")
        source.expect_exit(0)
        self.is_complete(destination)

    def is_complete(self, destination: Child) -> None:
        """Check that the destination has ended, and has the image."""
        destination.expect_exit(0)
        assert not self.marker.exists()
        assert_same(self.image, self.copy)


@pytest.fixture
def scene(tmp_path: Path, children: Children) -> Scene:
    return Scene(tmp_path, children)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("name", "line", "more"), UNFINISHED)
def test_an_attempt_that_is_not_whole_is_forgotten_and_the_next_one_starts_over(
    scene: Scene, name: str, line: str, more: tuple[str, ...], style: tuple[str, ...]
) -> None:
    destination = scene.listen(*style)
    source = scene.source(name, *more)
    source.wait_for(line)
    source.expect_exit(0)
    scene.waits_as_if_nothing_had_come(destination)
    scene.takes_a_whole_image(destination)


@pytest.mark.parametrize("name", ["says_nothing", "says_nothing_after_hello"])
def test_a_source_that_says_nothing_is_sent_away_after_ten_seconds(scene: Scene, name: str) -> None:
    destination = scene.listen()
    source = scene.source(name)
    waited = source.wait_for(r"the destination waited ([\d.]+) s", timeout=30)[1]
    assert 8 < float(waited) < 15
    scene.waits_as_if_nothing_had_come(destination)
    scene.takes_a_whole_image(destination)


@pytest.mark.parametrize("style", STYLES)
def test_a_second_connection_is_refused_and_the_first_one_goes_on(
    scene: Scene, style: tuple[str, ...]
) -> None:
    destination = scene.listen(*style)
    source = scene.source("connects_twice")
    source.wait_for("the second connection was refused")
    source.expect_exit(0)
    scene.is_complete(destination)


def test_a_source_from_a_forbidden_address_is_sent_away_and_told_why(scene: Scene) -> None:
    destination = scene.listen("127.0.0.1")
    source = scene.source("comes_from_a_forbidden_address", "127.0.0.2")
    source.wait_for("127.0.0.2 is refused: the access list doesn't allow it")
    source.expect_exit(0)
    scene.waits_as_if_nothing_had_come(destination)
    scene.takes_a_whole_image(destination)


@pytest.mark.parametrize("twistd", [False, True])
def test_sigterm_in_the_middle_ends_the_destination_with_1_and_marks_the_image(
    scene: Scene, twistd: bool
) -> None:
    destination = scene.listen(twistd=twistd)
    source = scene.source("kills_the_destination", str(destination.pid))
    source.wait_for("the destination ended the connection")
    destination.expect_exit(1)
    assert scene.marker.exists()

    again = scene.listen(twistd=twistd)
    scene.takes_a_whole_image(again)


def test_sigterm_before_anybody_came_ends_the_destination_with_1_too(scene: Scene) -> None:
    destination = scene.listen()
    destination.send(signal.SIGTERM)
    destination.expect_exit(1)


@pytest.mark.parametrize("twistd", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_a_source_without_a_fault_hands_its_image_over(
    scene: Scene, style: tuple[str, ...], twistd: bool
) -> None:
    scene.takes_a_whole_image(scene.listen(*style, twistd=twistd))


def test_faults_of_all_kinds_in_a_row_leave_no_trace(scene: Scene) -> None:
    destination = scene.listen()
    for name, line, more in UNFINISHED:
        source = scene.source(name, *more)
        source.wait_for(re.escape(line))
        source.expect_exit(0)
        scene.waits_as_if_nothing_had_come(destination)
    scene.takes_a_whole_image(destination)


def test_each_source_is_run_by_a_test_here() -> None:
    one_of_a_kind = {
        "comes_from_a_forbidden_address",
        "connects_twice",
        "does_everything_right",
        "kills_the_destination",
        "says_nothing",
        "says_nothing_after_hello",
    }
    run = {name for name, _, _ in UNFINISHED} | one_of_a_kind
    assert {program.stem for program in PROGRAMS.glob("*.py")} == run
