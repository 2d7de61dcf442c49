"""What the doctor says of an image is what starting a server on it comes to, whatever is the matter
with the image.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flexmigrate.wire.handover import State
from support.images import MIB, random_image
from support.journals import leave
from support.privileges import block_device, needs_root
from support.processes import LISTENING, Children, flexmigrate

Condition = Callable[[Path, Children], "contextlib.AbstractContextManager[Path]"]


def tool(*argv: str | Path) -> None:
    """Run a program of the system's, or skip the test where it can't be."""
    found = shutil.which(str(argv[0]), path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"there is no {argv[0]}")
    done = subprocess.run([found, *map(str, argv[1:])], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{argv}: {done.stderr}")


@contextlib.contextmanager
def sound(image: Path, children: Children) -> Iterator[Path]:
    yield image


@contextlib.contextmanager
def missing(image: Path, children: Children) -> Iterator[Path]:
    image.unlink()
    yield image


@contextlib.contextmanager
def a_fifo(image: Path, children: Children) -> Iterator[Path]:
    image.unlink()
    os.mkfifo(image)
    yield image


@contextlib.contextmanager
def served(image: Path, children: Children) -> Iterator[Path]:
    children.flexmigrate("serve", "-l", "127.0.0.1", "-p", "0", "-f", str(image)).listening()
    yield image


@contextlib.contextmanager
def served_read_only(image: Path, children: Children) -> Iterator[Path]:
    words = ("serve", "-l", "127.0.0.1", "-p", "0", "--read-only", "-f", str(image))
    children.flexmigrate(*words).listening()
    yield image


@contextlib.contextmanager
def in_qemu(image: Path, children: Children) -> Iterator[Path]:
    if shutil.which("qemu-nbd") is None:
        pytest.skip("there is no qemu-nbd")
    pid = image.with_name("pid")
    words = ("-f", "raw", "-t", "-k", str(image.with_name("sock")), "--pid-file", str(pid))
    child = children.start("qemu-nbd", *words, str(image))
    while not pid.exists():
        assert child.running, child.story()
        os.sched_yield()
    yield image


@contextlib.contextmanager
def immutable(image: Path, children: Children) -> Iterator[Path]:
    tool("chattr", "+i", image)
    try:
        yield image
    finally:
        tool("chattr", "-i", image)


@contextlib.contextmanager
def used_as_swap(image: Path, children: Children) -> Iterator[Path]:
    image.chmod(0o600)
    tool("mkswap", image)
    tool("swapon", image)
    try:
        yield image
    finally:
        tool("swapoff", image)


@contextlib.contextmanager
def a_device(image: Path, children: Children) -> Iterator[Path]:
    with block_device(image) as device:
        yield device


@contextlib.contextmanager
def a_mounted_device(image: Path, children: Children) -> Iterator[Path]:
    tool("mke2fs", "-q", "-F", image)
    with block_device(image) as device:
        folder = image.with_name("mounted")
        folder.mkdir()
        tool("mount", device, folder)
        try:
            yield device
        finally:
            tool("umount", folder)


@contextlib.contextmanager
def a_device_that_swaps(image: Path, children: Children) -> Iterator[Path]:
    with block_device(image) as device:
        tool("mkswap", device)
        tool("swapon", device)
        try:
            yield device
        finally:
            tool("swapoff", device)


@contextlib.contextmanager
def a_read_only_device(image: Path, children: Children) -> Iterator[Path]:
    with block_device(image) as device:
        tool("blockdev", "--setro", device)
        try:
            yield device
        finally:
            tool("blockdev", "--setrw", device)  # or the next one of this name would be


@contextlib.contextmanager
def a_claimed_device(image: Path, children: Children) -> Iterator[Path]:
    with block_device(image) as device:
        fd = os.open(device, os.O_RDONLY | os.O_EXCL)
        try:
            yield device
        finally:
            os.close(fd)


@contextlib.contextmanager
def served_by_its_device(image: Path, children: Children) -> Iterator[Path]:
    with block_device(image) as device:
        words = ("serve", "-l", "127.0.0.1", "-p", "0", "-f", str(device))
        children.flexmigrate(*words).listening()
        yield image


@contextlib.contextmanager
def a_device_of_what_is_served(image: Path, children: Children) -> Iterator[Path]:
    children.flexmigrate("serve", "-l", "127.0.0.1", "-p", "0", "-f", str(image)).listening()
    with block_device(image) as device:
        yield device


@contextlib.contextmanager
def mounted_by_its_device(image: Path, children: Children) -> Iterator[Path]:
    with a_mounted_device(image, children):
        yield image


@contextlib.contextmanager
def given_away(image: Path, children: Children) -> Iterator[Path]:
    leave(image, State.DONE)
    yield image


@contextlib.contextmanager
def come_here(image: Path, children: Children) -> Iterator[Path]:
    leave(image, State.OWNER, acknowledged=True)
    yield image


@contextlib.contextmanager
def incomplete(image: Path, children: Children) -> Iterator[Path]:
    image.with_name("disk.img.INCOMPLETE").write_text("")
    yield image


@contextlib.contextmanager
def planted(image: Path, children: Children) -> Iterator[Path]:
    image.with_name("disk.img.handover").symlink_to("/nowhere")
    yield image


CONDITIONS: dict[Condition, set[str]] = {
    sound: set(),
    missing: {"serve", "read-only", "listen"},
    a_fifo: {"serve", "read-only", "listen"},
    served: {"serve", "read-only", "listen"},
    served_read_only: {"serve", "listen"},
    in_qemu: {"serve", "read-only", "listen"},
    immutable: {"serve", "listen"},
    used_as_swap: {"serve", "listen"},
    a_device: set(),
    a_mounted_device: {"serve", "listen"},
    a_device_that_swaps: {"serve", "listen"},
    a_read_only_device: {"serve", "listen"},
    a_claimed_device: {"serve", "listen"},
    served_by_its_device: {"serve", "read-only", "listen"},
    a_device_of_what_is_served: {"serve", "read-only", "listen"},
    mounted_by_its_device: {"serve", "listen"},
    given_away: {"serve", "read-only"},
    come_here: {"listen"},
    incomplete: {"serve", "read-only"},
    planted: {"serve", "read-only", "listen"},
}
"""What is the matter, and which servers can't start with it."""

WAYS = {"serve": ("serve",), "read-only": ("serve", "--read-only"), "listen": ("listen",)}


@needs_root
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda each: each.__name__)
def test_the_verdict_is_what_starting_comes_to(
    condition: Condition,
    way: str,
    tmp_path: Path,
    children: Children,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLEXMIGRATE_STATE_DIR", str(tmp_path / "state"))
    image = random_image(tmp_path / "disk.img", MIB)
    with condition(image, children) as path:
        command, *more = WAYS[way]
        words = (command, "-l", "127.0.0.1", "-p", "0", *more, "-f", str(path))
        said = flexmigrate("doctor", *words)
        server = children.flexmigrate(*words)
        try:
            server.wait_for(f"{LISTENING.pattern}|flexmigrate: |ending with status 1")
            starts = any(LISTENING.search(line) for line in server.lines)
        finally:
            server.end()
        assert b"Traceback" not in said.stdout + said.stderr
        assert not any("Traceback" in line for line in server.lines)
        assert (said.returncode == 0) is starts, f"{said.stdout.decode()}\n{server.story()}"
        assert starts is (way not in CONDITIONS[condition])
