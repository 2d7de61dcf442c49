"""Where what belongs to an image is kept: beside a file; for a block device, in the state folder.

What stands beside a device node is gone when the host is started again, for ``/dev`` is made anew
then. And a node's name is given to another device as soon as they are found in another order. So
for a device it stands in ``/var/lib/flexmigrate``, by what the kernel says the device is: the UUID
of a device-mapper or LVM volume, a disk's world-wide name or serial number, the file behind a loop
device, each with the number of the partition. Of a device that has nothing of the kind the name of
its node has to do.

Twisted is not imported: the command line looks there, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat

from flexmigrate.image.disk import Disk

STATE_DIR = "/var/lib/flexmigrate"
"""Where it is kept for block devices, unless FLEXMIGRATE_STATE_DIR names another folder."""

VARIABLE = "FLEXMIGRATE_STATE_DIR"
"""Of the environment; the same for every command about an image, or they don't find each other."""

SYSFS = "/sys/dev/block"

# Below the folder of a device in sysfs, by how surely each tells it from all others.
_IDENTITIES = ("dm/uuid", "wwid", "device/wwid", "device/serial", "serial", "loop/backing_file")

_MOST_NAME = 120
"""Characters of a name, which gets suffixes still."""


def beside(disk: Disk, path: str, sysfs: str = SYSFS) -> str:
    """Return what the names of an image's journal and marker begin with.

    :param path: of the image, absolute and without links.
    :raises OSError: as stat(2), but for there being no such file.
    """
    try:
        status = disk.stat(path)
    except FileNotFoundError:
        return path  # whatever there was of it was a file's
    if not stat.S_ISBLK(status.st_mode):
        return path
    folder = os.environ.get(VARIABLE) or STATE_DIR
    return os.path.join(folder, _name(path, status.st_rdev, sysfs))


def make_folder(path: str) -> None:
    """Make the state folder, if *path*, as `beside` returned it, is in it, and it isn't there.

    Where that fails, whoever writes there is told.
    """
    folder = os.path.dirname(path)
    if folder != (os.environ.get(VARIABLE) or STATE_DIR):
        return
    with contextlib.suppress(OSError):
        os.mkdir(folder, 0o755)
        above = os.open(os.path.dirname(folder), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(above)
        finally:
            os.close(above)


def _name(path: str, device: int, sysfs: str) -> str:
    """Return a file name for the device with that number, whose node is *path*."""
    place = os.path.join(sysfs, f"{os.major(device)}:{os.minor(device)}")
    partition = _read(os.path.join(place, "partition"))
    whole = os.path.join(os.path.realpath(place), "..") if partition else place
    found = next(filter(None, (_read(os.path.join(whole, each)) for each in _IDENTITIES)), None)
    if found is None:
        return "node-" + _safe(path)  # with its partition's number in its name
    return _safe(found + (f"-part{partition}" if partition else ""))


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(4096).strip() or None
    except OSError:
        return None


def _safe(text: str) -> str:
    """Return *text* as a file name; another one for every other text."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", text)
    if name == text and len(name) <= _MOST_NAME and not name.startswith("."):
        return name
    return f"{name[:_MOST_NAME].lstrip('.')}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
