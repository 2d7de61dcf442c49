"""The places of an image's records: beside a file; for a block device, in the state folder.

What stands beside a device node is gone when the host is started again, for ``/dev`` is made anew
then. And a node's name is given to another device as soon as they are found in another order. So
for a device it stands in ``/var/lib/flexmigrate/devices``, by what the kernel says the device is:
the UUID of a device-mapper, LVM or RAID volume, a disk's world-wide name or serial number, the
image of a RADOS block device, the file behind a loop device and where in it, each with the number
of the partition. Of a device that has nothing of the kind the name of its node has to do.

Twisted is not imported: the command line looks there, too.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat

from flexmigrate.image import disk as disks
from flexmigrate.image.disk import Disk

STATE_DIR = "/var/lib/flexmigrate"
"""Where it is kept for block devices, unless FLEXMIGRATE_STATE_DIR names another folder."""

VARIABLE = "FLEXMIGRATE_STATE_DIR"
"""Of the environment; the same for every command about an image, or they don't find each other."""

SYSFS = "/sys/dev/block"

# Below the folder of a device in sysfs, by how surely each tells it from all others. Where several
# files stand together, they do so together, and the first of them has to be there.
_IDENTITIES = (
    ("dm/uuid",),
    ("md/uuid",),
    ("wwid",),
    ("device/wwid",),
    ("device/serial",),
    ("serial",),
    ("device/image_id", "device/cluster_fsid", "device/pool_id", "device/current_snap"),
    ("loop/backing_file", "loop/offset", "loop/sizelimit"),
    ("backend",),
)

# What such files may answer where the device has no such thing.
_NONE_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENXIO, errno.EINVAL, errno.ENODEV)

_MOST_NAME = 120
"""Characters of a name, which gets suffixes still."""


def beside(disk: Disk, path: str) -> str:
    """Return what the names of an image's journal and marker begin with.

    :param path: of the image, absolute and without links.
    :raises OSError: as stat(2), but for there being no such file; or what sysfs says of a device
        can't be read.
    """
    try:
        status = disk.stat(path)
    except FileNotFoundError:
        return path  # whatever there was of it was a file's
    if not stat.S_ISBLK(status.st_mode):
        return path
    folder = _folder()
    for each in (os.path.dirname(folder), folder):
        _check_folder(each)
    return os.path.join(folder, _name(path, status.st_rdev))


def _check_folder(path: str) -> None:
    """See that nobody else can remove, or change the names of, what is in the state folder.

    :raises UntrustedFile: somebody can.
    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return  # whoever is to write there is told
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid not in (0, os.geteuid()):
        fault = f"it belongs to user {status.st_uid}"
    elif mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        fault = "everybody may write to it"
    else:
        return
    raise disks.UntrustedFile(
        f"the folder {path} can't be trusted with the records of devices: {fault} (mode "
        f"{mode:04o}); make it root's, or name another one with {VARIABLE}"
    )


def aside(path: str, status: os.stat_result) -> str:
    """Return what the names of that begin with which is kept of an open image in the state folder,
    because it has no place at the file.

    :param path: of the image, absolute and without links.
    :param status: of what is open.
    :raises OSError: as `beside`, of a device.
    """
    if stat.S_ISBLK(status.st_mode):
        return os.path.join(_folder(), _name(path, status.st_rdev))
    return os.path.join(_folder(), f"file-{status.st_dev:x}-{status.st_ino}")


def make_folder(path: str) -> None:
    """Make the state folder, if *path*, as `beside` or `aside` returned it, is in it, and it isn't
    there.

    Where that fails, whoever writes there is told.
    """
    folder = _folder()
    if os.path.dirname(path) != folder:
        return
    above = os.path.dirname(folder)
    for each in (above, folder):
        with contextlib.suppress(OSError):
            os.mkdir(each, 0o755)
            disks.sync_folder(disks.SYSTEM, each)


def _folder() -> str:
    return os.path.join(os.path.abspath(os.environ.get(VARIABLE) or STATE_DIR), "devices")


def _name(path: str, device: int) -> str:
    """Return a file name for the device with that number, whose node is *path*."""
    place = os.path.join(SYSFS, f"{os.major(device)}:{os.minor(device)}")
    os.stat(place)  # without sysfs another name would be found, and none of what was written
    partition = _read(os.path.join(place, "partition"))
    whole = os.path.join(os.path.realpath(place), "..") if partition else place
    for first, *others in _IDENTITIES:
        found = _read(os.path.join(whole, first))
        if found is not None:
            rest = (_read(os.path.join(whole, each)) or "" for each in others)
            found = ":".join((found, *rest)).rstrip(":")
            return _safe(found + (f"-part{partition}" if partition else ""))
    return "node-" + _safe(path)  # with its partition's number in its name


def _read(path: str) -> str | None:
    """Return what stands in a file of sysfs, or None where the device has no such thing.

    :raises OSError: it can't be read, for any other reason.
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(4096).strip() or None
    except OSError as error:
        if error.errno in _NONE_THERE:
            return None
        raise


def _safe(text: str) -> str:
    """Return *text* as a file name; another one for every other text."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", text)
    if name == text and len(name) <= _MOST_NAME and not name.startswith("."):
        return name
    return f"{name[:_MOST_NAME].lstrip('.')}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
