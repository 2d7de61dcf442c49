"""A FUSE filesystem that fails, waits or lies where a test tells it to.

It hands everything on to a folder of a real filesystem (`faulty_filesystem.c`), so that what has
got through can be looked at there. With write-back the kernel keeps what is written, and
``lseek(SEEK_HOLE)`` calls it a hole until it is flushed.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import pytest

from support.processes import PATIENCE

_SOURCE = Path(__file__).with_suffix(".c")
_EVERYTHING = (1 << 63) - 1


@functools.cache
def _compiled() -> Path:
    """Compile the program once for each process that runs tests; skip where that can't be done."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("only root can mount a FUSE filesystem, and only where there is /dev/fuse")
    if shutil.which("gcc") is None or not Path("/usr/include/fuse3/fuse.h").exists():
        pytest.skip("gcc and libfuse3-dev are needed to build the FUSE filesystem")
    folder = tempfile.mkdtemp(prefix="flexmigrate-fuse-")
    atexit.register(shutil.rmtree, folder)
    program = Path(folder, "faulty_filesystem")
    options = ("-O1", "-Wall", "-Werror", "-D_FILE_OFFSET_BITS=64", "-I/usr/include/fuse3")
    libraries = ("-lfuse3", "-pthread")
    subprocess.run(["gcc", *options, "-o", program, _SOURCE, *libraries], check=True)
    return program


class FaultyFilesystem:
    """A filesystem that is mounted, and does what a test tells it to.

    *operation* is one of ``read``, ``write``, ``fsync``, ``truncate``, ``fallocate``, ``lseek``,
    ``open``, ``create``, ``unlink``, ``rename``, ``link``, ``getxattr`` and ``setxattr``; *name* is
    the last component of a file's path, or ``*``.

    :ivar folder: where it is mounted.
    :ivar beneath: the folder that everything is handed on to.
    """

    def __init__(self, folder: Path, beneath: Path, process: subprocess.Popen[str]) -> None:
        self.folder = folder
        self.beneath = beneath
        self._process = process

    def _ask(self, *words: object) -> str:
        pipe, answers = cast("IO[str]", self._process.stdin), cast("IO[str]", self._process.stdout)
        pipe.write(" ".join(map(str, words)) + "\n")
        pipe.flush()
        return answers.readline().strip()

    def _tell(self, *words: object) -> None:
        answer = self._ask(*words)
        assert answer == "ok", f"{words}: {answer or 'the filesystem has ended'}"

    def fail(
        self,
        operation: str,
        name: str = "*",
        error: int = errno.EIO,
        start: int = 0,
        end: int = _EVERYTHING,
    ) -> None:
        """Fail operations that touch a byte from *start* up to *end*."""
        self._tell("fail", operation, name, error, start, end)

    def slow(self, operation: str, name: str = "*", *, seconds: float) -> None:
        """Let each operation take so much longer."""
        self._tell("slow", operation, name, round(seconds * 1000))

    def hold(self, operation: str, name: str = "*") -> None:
        """Let operations wait until `release` or `clear`."""
        self._tell("hold", operation, name)

    def release(self) -> None:
        """Let go on what is held, and hold nothing any more."""
        self._tell("release")

    def clear(self) -> None:
        """Be a filesystem like others again."""
        self._tell("clear")

    def begun(self, operation: str, name: str = "*") -> int:
        """Return how many operations have begun, those that are held or have failed included."""
        return int(self._ask("count", operation, name))

    def wait_for(self, operation: str, name: str = "*", count: int = 1) -> None:
        """Wait until *count* operations have begun; for threads and other processes to get there.

        :raises AssertionError: if that doesn't happen
        """
        deadline = time.monotonic() + PATIENCE
        while (begun := self.begun(operation, name)) < count:
            assert time.monotonic() < deadline, f"{operation} {name}: {begun} have begun"
            time.sleep(0.01)


@contextlib.contextmanager
def faulty_filesystem(
    folder: Path, *, write_back: bool = False, lseek: bool = True, fallocate: bool = True
) -> Iterator[FaultyFilesystem]:
    """Mount one on *folder*, which is made, above ``FOLDER.beneath``, while the body runs.

    :param write_back: let the kernel keep what is written until it is flushed
    :param lseek: hand ``lseek(SEEK_HOLE)`` on; without it all is data, as the kernel says
    :param fallocate: hand fallocate on; without it the kernel says EOPNOTSUPP
    """
    program = _compiled()
    beneath = folder.with_name(f"{folder.name}.beneath")
    folder.mkdir()
    beneath.mkdir()
    told = {"write-back": write_back, "no-lseek": not lseek, "no-fallocate": not fallocate}
    process = subprocess.Popen(
        [program, beneath, folder, *(option for option, wanted in told.items() if wanted)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline() != "mounted\n":
            process.stdin.close()
            pytest.skip("a FUSE filesystem can't be mounted here")
        mounted = FaultyFilesystem(folder, beneath, process)
        try:
            yield mounted
        finally:
            # Lazily, and killed: a server that is ended after this may still have a file open, and
            # a filesystem that is asked to end waits for that. What is held ends with an error.
            subprocess.run(["umount", "--lazy", str(folder)])
            process.kill()
