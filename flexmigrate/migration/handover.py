"""Who owns the image: the one place at each end where that is decided, and nothing else.

The plain handover, which works towards any NBD server: all data, a flush, with ``unlink`` the
source's file is removed, then DISC. Two things follow from its nature, and are kept here:

* Until the source begins its last step (``committing``) it owns the image, whatever else happens.
  From then on it never serves again, because the destination may own it.
* A destination owns the image only by a DISC at the end of a valid stream that covered all of it.
  Then, and before it closes the connection, the image is flushed and its marker removed: the
  close tells the source.

Between the source's last step and the close that answers it there is a gap that no further
message would close; an error in it is :class:`HandoverUncertain`, and a matter for a human.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import Enum
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from flexmigrate.client import NBDClientProtocol
from flexmigrate.errors import ConnectionGone, FlexmigrateError, ImageError, MigrationError
from flexmigrate.image import disk as disks
from flexmigrate.image.background import Background
from flexmigrate.image.coverage import Coverage
from flexmigrate.image.disk import SYSTEM, Disk
from flexmigrate.image.file import Image

log = Logger()

# How long the source waits for the destination's answer to DISC: it syncs little, since all was
# flushed just before.
CLOSE_SECONDS = 30.0

MARKER_SUFFIX = ".INCOMPLETE"

_MARKER_TEXT = (
    "A migration into the image beside this file has not finished: the image is not whole.\n"
    "flexmigrate removes this file once it is.\n"
)


class HandoverUncertain(MigrationError):
    """The last step was begun and not confirmed: both ends may believe that they own the image."""


class NotGiven(MigrationError):
    """The handover failed before anything that can't be taken back: the image is still the
    source's.
    """


class SourceHandover:
    """The last step of a source.

    :param committing: called right before the first act that can't be taken back.
    """

    def __init__(
        self,
        reactor: Any,
        image: Image,
        background: Background,
        client: NBDClientProtocol,
        *,
        unlink: bool,
        committing: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._image = image
        self._background = background
        self._client = client
        self._unlink = unlink
        self._committing = committing

    async def give(self) -> None:
        """Give the image away; all is sent and flushed, and nobody is served any more.

        :raises NotGiven: nothing happened, because the connection ended first or the file can't
            be unlinked.
        :raises HandoverUncertain: it was begun, and not confirmed.
        """
        if self._client.failure is not None:
            raise NotGiven(f"the destination is gone: {self._client.failure}")
        self._committing()
        if self._unlink:
            await self._remove()
        silence = ConnectionGone(f"it did not close the connection within {CLOSE_SECONDS:g} s")
        timer = self._reactor.callLater(CLOSE_SECONDS, self._client.abort, silence)
        try:
            await self._client.disconnect()
        except FlexmigrateError as error:
            raise HandoverUncertain(self._describe(error)) from error
        finally:
            if timer.active():
                timer.cancel()

    async def _remove(self) -> None:
        try:
            await self._background.run(self._image.unlink)
        except ImageError as error:
            raise NotGiven(str(error)) from error
        except OSError as error:
            if self._image.has_name:
                raise NotGiven(f"{self._image.path} can't be unlinked: {error}") from error
            # The name is gone, but would come back if the machine crashed at once.
            log.error("unlinking {path}: {error}", path=self._image.path, error=error)

    def _describe(self, error: object) -> str:
        fate = "was kept: use neither copy before the destination's marker was looked for"
        if self._unlink:
            fate = "was removed: the destination's copy is canonical"
        return (
            "the destination has all data, flushed, but did not confirm that it took over "
            f"({error}); {self._image.path} {fate}"
        )


class Verdict(Enum):
    """What a DISC means at a destination."""

    OURS = "ours"
    NOT_OURS = "not ours"


class DestinationHandover:
    """The marker beside a destination's image, and the decision that removes it.

    :ivar owned: whether the image is ours.
    """

    def __init__(self, image: Image, background: Background, *, full_coverage: bool = True) -> None:
        self._image = image
        self._background = background
        self._full_coverage = full_coverage
        self.owned = False

    @property
    def marker(self) -> str:
        """Path of the file that stands exactly while the image is incomplete.

        Beside the image itself: whoever comes by another link, or from another folder, finds it.
        """
        return self._image.real_path + MARKER_SUFFIX

    def expect(self) -> None:
        """Set the marker, durably, before the first byte is received.

        :raises ImageError: where it can't be written.
        """
        try:
            self._write_marker()
        except OSError as error:
            raise ImageError(f"can't write the marker {self.marker}: {error.strerror}") from error

    def _write_marker(self) -> None:
        disks.replace(self._image.disk, self.marker, _MARKER_TEXT.encode())

    def judge(self, coverage: Coverage) -> str | None:
        """Return why a DISC after *coverage* does not give the image to us, or None if it does."""
        if not coverage.writes:
            return "it sent no data"
        if coverage.spoiled is not None:
            return f"a write failed ({coverage.spoiled})"
        if self._full_coverage and not coverage.complete:
            missing = coverage.size - coverage.covered
            return f"{missing} of {coverage.size} bytes were never written, zeroed or trimmed"
        return None

    def take(self, coverage: Coverage) -> Deferred[Verdict]:
        """Decide about a DISC: flush, remove the marker, own the image; or don't.

        Fails with OSError where the image can't be flushed or the marker can't be removed; it
        isn't ours then.
        """
        return Deferred.fromCoroutine(self._take(coverage))

    async def _take(self, coverage: Coverage) -> Verdict:
        refusal = self.judge(coverage)
        if refusal is not None:
            log.error("the sender said DISC, but {refusal}: not taking over", refusal=refusal)
            return Verdict.NOT_OURS
        await self._background.flush()
        await self._background.run(self._remove_marker)
        self.owned = True
        return Verdict.OURS

    def _remove_marker(self) -> None:
        disk = self._image.disk
        try:
            disks.remove(disk, self.marker)  # perhaps the operator has done so: so be it
        except OSError:
            if not disks.exists(disk, self.marker):
                # It may come back after a crash. The image isn't ours then, and the marker says so.
                self._write_marker()
            raise


def incomplete(path: str, disk: Disk = SYSTEM) -> bool:
    """Return whether a migration into the image at *path* began and never finished.

    :raises OSError: that can't be told.
    """
    return disks.exists(disk, os.path.realpath(path) + MARKER_SUFFIX)
