"""The scripted peers without a fault understand each other: so the others fail for theirs alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.images import MIB, assert_same, blank_image, random_image
from support.processes import Children

PEERS = Path(__file__).parent
SIZE = MIB + 512


@pytest.mark.parametrize("style", ["oldstyle", "newstyle"])
def test_the_right_source_fills_the_right_destination(
    children: Children, tmp_path: Path, style: str
) -> None:
    image = random_image(tmp_path / "image", SIZE)
    copy = blank_image(tmp_path / "copy", SIZE)
    destination = children.python(
        str(PEERS / "destinations/does_everything_right.py"),
        *("127.0.0.1", "0", str(copy), "--style", style),
    )
    address, port = destination.listening()
    source = children.python(
        str(PEERS / "sources/does_everything_right.py"), address, str(port), str(image)
    )
    source.expect_exit(0)
    destination.expect_exit(0)
    destination.wait_for("complete")
    assert_same(image, copy)


@pytest.mark.parametrize("style", ["oldstyle", "newstyle"])
def test_a_fault_is_committed_once_and_then_the_destination_is_faithful(
    children: Children, tmp_path: Path, style: str
) -> None:
    image = random_image(tmp_path / "image", SIZE)
    copy = blank_image(tmp_path / "copy", SIZE)
    destination = children.python(
        str(PEERS / "destinations/closes_after_the_data_of_a_write.py"),
        *("127.0.0.1", "0", str(copy), "--style", style),
    )
    address, port = destination.listening()
    right = (str(PEERS / "sources/does_everything_right.py"), address, str(port), str(image))
    disappointed = children.python(*right)
    assert disappointed.wait() == 1
    disappointed.wait_for("Ended")
    children.python(*right).expect_exit(0)
    destination.expect_exit(0)
    assert_same(image, copy)
