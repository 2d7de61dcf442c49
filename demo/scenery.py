"""What the demonstration plays with: an image with a real filesystem, and the blocks of one file
in it.

The client writes only to the blocks of that file, as a database in a guest would. So the rest of
the filesystem has to come over unchanged, and `e2fsck` has to find it clean.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support.images import filesystem_image
from support.processes import run
from support.record import BLOCK

# The image is so many times larger than what is in it: most images are, and holes must stay holes.
ROOM = 2

# The file that the client writes to has this part of what is in the image.
_DATABASE_PART = 1 / 4

_SEED = 20


@dataclass(frozen=True)
class Scenery:
    """Where everything is.

    :ivar folder: holds all the others.
    :ivar original: what the image was before the first write; nobody writes to it.
    :ivar source: the image at the source.
    :ivar destination: an image of the same size, empty, at the destination.
    :ivar blocks: a file with the numbers of the blocks that the client may write.
    :ivar files: how many files are in the filesystem.
    """

    folder: Path
    original: Path
    source: Path
    destination: Path
    blocks: Path
    files: int


def build(folder: Path, data: int) -> Scenery:
    """Make everything; about *data* bytes of the image are in use.

    :raises OSError: if there is no room, or a program is missing
    :raises subprocess.CalledProcessError: if the filesystem can't be made
    """
    contents = folder / "contents"
    contents.mkdir()
    files = _copy_library(contents, data // 2)
    database = contents / "database"
    wanted = max(int(data * _DATABASE_PART), 16 * BLOCK)
    filling = data - wanted - sum(path.stat().st_size for path in contents.rglob("*"))
    for name, size in (("database", wanted), ("archive", max(filling, BLOCK))):
        _write_random(contents / name, size)
    original = filesystem_image(folder / "original.img", ROOM * data, contents)
    blocks = list(_blocks_of(database, original))
    (folder / "blocks").write_text("".join(f"{block}\n" for block in blocks))
    shutil.rmtree(contents)
    source = folder / "source.img"
    subprocess.run(["cp", "--sparse=always", str(original), str(source)], check=True)
    destination = folder / "destination.img"
    with destination.open("wb") as image:
        image.truncate(original.stat().st_size)
    return Scenery(folder, original, source, destination, folder / "blocks", files + 2)


def is_clean(image: Path) -> bool:
    """Return whether `e2fsck` finds nothing to mend in the filesystem."""
    found = shutil.which("e2fsck") or shutil.which("e2fsck", path="/usr/sbin:/sbin")
    if found is None:
        raise FileNotFoundError("e2fsck (Debian's package e2fsprogs) is needed")
    return run(found, "-f", "-n", str(image), timeout=120).returncode == 0


def _copy_library(contents: Path, most: int) -> int:
    """Copy files of Python's library, at most *most* bytes; return how many files."""
    library = Path(sysconfig.get_path("stdlib"))
    copied = used = 0
    for path in sorted(library.rglob("*.py")):
        inner = path.relative_to(library)
        size = path.stat().st_size
        if "packages" in inner.parts[0] or used + size > most:
            continue
        target = contents / "library" / inner
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        copied += 1
        used += size
    return copied


def _write_random(path: Path, size: int) -> None:
    """Fill a file with bytes that no two blocks have in common."""
    source = random.Random(f"{_SEED} {path.name}")
    with path.open("wb") as file:
        for _ in range(0, size, BLOCK):
            file.write(source.randbytes(BLOCK))


def _blocks_of(file: Path, image: Path) -> Iterator[int]:
    """Find the blocks of *image* that hold the blocks of *file*, which are all different."""
    wanted = set(_read_blocks(file))
    return (number for number, block in enumerate(_read_blocks(image)) if block in wanted)


def _read_blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block
