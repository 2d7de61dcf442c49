"""An image that is open in this process, with its threads and its export, until it is
closed in good order.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from flexmigrate.errors import ImageError, in_words
from flexmigrate.image.device_storage import DeviceStorage
from flexmigrate.image.file import Image, Opener
from flexmigrate.image.file_storage import FileStorage
from flexmigrate.image.flush_failure import FlushFailure
from flexmigrate.image.shares import ImageThreads
from flexmigrate.image.storage import Storage
from flexmigrate.migration.ownership.ownership import Ownership, Unrecorded
from flexmigrate.server.export import Export
from flexmigrate.wire.handover import State

log = Logger()


def new_pool() -> ThreadPool:
    """Return the thread pool of one server, not yet started."""
    return ImageThreads()


class Host:
    """An open image, its records, and its export.

    :ivar ownership: the records of its ownership.
    :ivar keeps_size: returns whether clients must not be told another size now: while the image is
        received, or sent.
    """

    def __init__(
        self,
        storage: Storage,
        ownership: Ownership,
        *,
        name: str,
        read_only: bool,
    ) -> None:
        if not storage.size:
            log.warn("{path}: it is empty: nothing can be read or written", path=storage.path)
        self.storage = storage
        self.ownership = ownership
        self._closing = DeferredLock()
        self.export = Export(name, storage, read_only=read_only)
        self.export.look = self.look_at_size
        self.keeps_size: Callable[[], bool] = lambda: True
        self._size_fault: str | None = None

    def look_at_size(self) -> None:
        """Check whether the file or device has another size now. If it has grown, new clients are
        told; if it has shrunk, the missing part can't be read. Never waits.
        """
        if self.storage.is_closed:
            return
        fault = self.storage.size_fault()
        if fault is not None and not self.keeps_size() and self.storage.grow():
            self.export.size = self.ownership.size = self.storage.size
            log.warn("{fault}; new clients are told so", fault=fault)
            fault = None
        if fault is not None and fault != self._size_fault:
            log.error("{fault}; clients that are connected keep to the old size", fault=fault)
        self._size_fault = fault

    @property
    def size(self) -> int:
        """The size of the image as it is served, in bytes."""
        return self.storage.size

    @property
    def full_name(self) -> str:
        """The host's name and the image's path, which tell people which copy is meant."""
        return f"{os.uname().nodename}:{self.storage.real_path}"

    def close(self) -> Deferred[None]:
        """Wait for current calls, flush, and close the image; no request may come any
        more.

        Fails with OSError if the image can't be flushed; it is closed all the same. Repeating is
        allowed: the second call waits for the first.
        """
        return self._closing.run(lambda: Deferred.fromCoroutine(self._close()))

    async def _close(self) -> None:
        if self.storage.is_closed:
            return
        await self.export.idle()
        try:
            if not self.export.read_only:
                await self.storage.flush()
        except OSError as error:
            if self.ownership.state is not State.DONE:
                raise
            log.warn("{path} was given away, but: {error}", path=self.storage.path, error=error)
        finally:
            await self.storage.drained()
            await self._keep_attribute()
            await self.storage.close()

    def discard(self) -> None:
        """Close the image at once, unused; a program's device stays open."""

    async def _keep_attribute(self) -> None:
        """Make the file's attribute durable: everything else was flushed."""
        if not self.ownership.is_recorded or self.export.read_only:
            return
        try:
            await self.storage.run(self.ownership.make_attribute_durable)
        except OSError as error:
            log.warn(
                "{path}: its attribute can't be made durable: {error}",
                path=self.storage.path,
                error=in_words(error),
            )


class ImageHost(Host):
    """A file or a block device, by its path.

    :raises ImageError: the image can't be opened or locked, or its journal can't be trusted.
    """

    #: Whether it waits for the image, and serves it only once it is here.
    is_destination = False

    def __init__(
        self,
        reactor: Any,
        pool: ThreadPool,
        path: str,
        *,
        name: str = "",
        read_only: bool = False,
        open_image: Opener = Image.open,
    ) -> None:
        image = open_image(path, read_only=read_only)
        try:
            ownership = Ownership(image.real_path, image.size, image.disk)
        except ImageError:
            image.close()
            raise
        tell_trust(image)
        if ownership.image_state.is_a_copy:
            log.info(
                "{path}: it has the record of another file, of which it is a copy: that means "
                "nothing here",
                path=image.path,
            )
        if image.unlocked is not None:
            log.info(
                "{path}: not all locks can be had there, so that QEMU, or a server of the same "
                "bytes by another name, may not be seen, and may not see us: {reason}",
                path=image.path,
                reason=image.unlocked,
            )
        storage = FileStorage(image, reactor, pool)
        super().__init__(storage, ownership, name=name, read_only=read_only)
        self.storage: FileStorage = storage
        self.image = image
        storage.flush_failed(self._flush_failed)
        if image.durability.earlier is not None:
            log.warn(
                "{path}: a flush failed ({failure}), and this machine was started anew since: what "
                "was written before that, and not flushed, may be missing",
                path=image.path,
                failure=image.durability.earlier.text,
            )

    def _flush_failed(self, failure: FlushFailure) -> None:
        path = self.image.path
        if self.is_destination and self.ownership.state is not State.OWNER:
            follows = (
                "what was received may be in memory only, and doesn't count. The next attempt "
                "empties the page cache first, and compares with what the disk has. Mend the disk, "
                "or give it room"
            )
        else:
            follows = (
                "what was written before may be in memory only. From now on every flush fails, "
                "reads and writes go on. What clients see can be saved by migrating it away; once "
                "the disk is mended, start the server anew, which then serves what the disk has"
            )
        log.error(
            "{path}: a flush failed ({failure}). Linux won't try again: {follows}. See docs: 'A "
            "flush that failed'",
            path=path,
            failure=failure.text,
            follows=follows,
        )
        unnoted = self.image.durability.unnoted
        if unnoted is not None:
            log.error(
                "{path}: that can't be noted anywhere ({error}), so that the next server won't "
                "know: before one is started, 'echo 1 > /proc/sys/vm/drop_caches'",
                path=path,
                error=unnoted,
            )

    def discard(self) -> None:
        self.image.close()

    def trust_cache(self) -> None:
        """Make sure that reads return the disk's content: if a flush has failed, empty the page
        cache. Waits for the disk.

        :raises ImageError: it can't be emptied.
        """
        durability = self.image.durability
        failure = durability.failure
        if failure is None:
            return
        self.image.empty_cache()
        log.warn(
            "{path}: a flush failed ({failure}); the page cache was emptied, so that clients see "
            "what the disk has: of what was written before that, and not flushed, some may be "
            "missing",
            path=self.image.path,
            failure=failure.text,
        )
        if durability.unnoted is not None:
            log.warn(
                "{path}: the note of that can't be removed, and will be heeded again: {error}",
                path=self.image.path,
                error=durability.unnoted,
            )


def tell_trust(image: Image) -> None:
    """Log whether the image's filesystem is trusted."""
    trust = image.trust
    if image.is_block_device:
        return
    if trust.holes:
        log.debug(
            "{path} is on {filesystem}, which is trusted to tell where it has holes",
            path=image.path,
            filesystem=trust.filesystem,
        )
        return
    log.warn(
        "{path} is on {filesystem}, which is not trusted to tell where it has holes ({doubt}): all "
        "of it counts as data, which a migration reads and sends, and zeroes are written",
        path=image.path,
        filesystem=trust.filesystem,
        doubt=trust.doubt,
    )


class DeviceHost(Host):
    """A device that a program has made: storage that isn't a file.

    :param device: provides IBlockDevice.
    :param path: its name in logs.
    :raises ImageError: it can't be served.
    """

    def __init__(
        self,
        reactor: Any,
        pool: ThreadPool,
        device: Any,
        path: str,
        *,
        name: str = "",
        read_only: bool = False,
    ) -> None:
        storage = DeviceStorage(device, path, reactor, pool)
        super().__init__(storage, Unrecorded(path), name=name, read_only=read_only)
