"""The storage that a block device is made of: the file of a loop device, the disk of a partition,
the devices below a device-mapper or RAID volume; and the loop devices of a file or device.

It is read from sysfs, so nothing is opened and no privilege is needed. Ranges are in bytes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from flexmigrate.image import places

MOST = 1 << 61
"""The end of a range whose end is unknown, or larger than this: 2 EiB."""

_UNIT = 512  # bytes: the unit of sysfs, whatever a device's sector size is


@dataclass(frozen=True, slots=True)
class Part:
    """A range of bytes of a file or a block device that a device above it uses.

    :ivar path: the path of the file, or of the device's node.
    :ivar start: its first byte.
    :ivar end: the first byte after it.
    :ivar is_known: whether the range is known; if not, the device above uses some part, and others
        may use other parts.
    :ivar is_whole: whether the device above uses all of it.
    """

    path: str
    start: int
    end: int
    is_known: bool = True
    is_whole: bool = False

    def meets(self, start: int, end: int) -> bool:
        """Return whether the ranges have a byte in common."""
        return self.start < end and start < self.end


def parts_of(path: str, status: os.stat_result) -> Iterator[Part]:
    """Yield the image itself, and everything below it, down to files and disks.

    :param status: the image's status. A file has nothing below it: the storage of its filesystem is
        the kernel's business.
    """
    whole = Part(path, 0, MOST, is_whole=True)
    yield whole
    if stat.S_ISBLK(status.st_mode):
        yield from _below(status.st_rdev, whole)


@dataclass(frozen=True, slots=True)
class LoopDevice:
    """A loop device.

    :ivar node: its path.
    :ivar part: the part of a file or device that it uses.
    :ivar partitions: its partitions, each with its node and its part of the same file.
    """

    node: str
    part: Part
    partitions: tuple[tuple[str, Part], ...]


def loop_devices() -> Iterator[LoopDevice]:
    """Yield all loop devices that are in use."""
    for name in _listed(places.SYSFS):
        place = os.path.join(places.SYSFS, name)
        node = _node(place)
        if node is None or not os.path.isdir(os.path.join(place, "loop")):
            continue
        for part in _of_loop(place, Part(node, 0, MOST, is_whole=True)):
            yield LoopDevice(node, part, tuple(_partitions(place, part)))


def _partitions(place: str, part: Part) -> Iterator[tuple[str, Part]]:
    for name in _listed(place):
        inner = os.path.join(place, name)
        if (node := _node(inner)) is not None:
            for within in _of_partition(inner, Part(node, 0, MOST)):
                start, end = (min(part.start + at, part.end) for at in (within.start, within.end))
                yield node, Part(part.path, start, end)


def _below(device: int, above: Part) -> Iterator[Part]:
    place = os.path.join(places.SYSFS, f"{os.major(device)}:{os.minor(device)}")
    for part in (*_of_partition(place, above), *_of_loop(place, above), *_of_slaves(place)):
        yield part
        try:
            status = os.stat(part.path)
        except OSError:
            continue
        if stat.S_ISBLK(status.st_mode):
            yield from _below(status.st_rdev, part)


def _of_partition(place: str, above: Part) -> Iterator[Part]:
    if _number(place, "partition") is None:
        return
    start = (_number(place, "start") or 0) * _UNIT
    length = (_number(place, "size") or 0) * _UNIT
    if (node := _node(os.path.join(os.path.realpath(place), ".."))) is not None:
        yield _shifted(node, above, start, start + length)


def _of_loop(place: str, above: Part) -> Iterator[Part]:
    path = _text(place, "loop/backing_file")
    if path is None:
        return
    start, length = _number(place, "loop/offset") or 0, _number(place, "loop/sizelimit") or 0
    yield _shifted(path, above, start, start + length if length else MOST)


def _of_slaves(place: str) -> Iterator[Part]:
    """Yield the devices below one that doesn't tell which parts of them it uses."""
    folder = os.path.join(place, "slaves")
    for name in _listed(folder):
        if (node := _node(os.path.join(folder, name))) is not None:
            yield Part(node, 0, MOST, is_known=False)


def _shifted(path: str, above: Part, start: int, end: int) -> Part:
    """Return the part of *path* for *above*, where the device uses *start* to *end* of *path*."""
    return Part(
        path,
        min(start + above.start, end, MOST),
        min(start + above.end, end, MOST),
        is_known=above.is_known,
        is_whole=above.is_whole and start == 0 and end == MOST,
    )


def _node(place: str) -> str | None:
    """Return the node of the device that sysfs has in the folder *place*."""
    for line in (_text(place, "uevent") or "").splitlines():
        if line.startswith("DEVNAME="):
            return os.path.join("/dev", line.removeprefix("DEVNAME="))
    return None


def _listed(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _number(place: str, name: str) -> int | None:
    text = _text(place, name)
    return int(text) if text is not None and text.isdecimal() else None


def _text(place: str, name: str) -> str | None:
    try:
        with open(os.path.join(place, name), encoding="utf-8", errors="surrogateescape") as file:
            return file.read().rstrip("\n") or None
    except OSError:
        return None
