"""The handover at the destination: the image becomes its own, or doesn't.

``ownership`` has the rules, and writes the records; ``source.handover`` is the source's part. The
order of messages is decided by the state machine, ``machine``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from flexmigrate.errors import ImageLost, in_words
from flexmigrate.image.file_storage import FileStorage
from flexmigrate.log import failures
from flexmigrate.migration.destination.coverage import Coverage
from flexmigrate.migration.ownership.ownership import Ownership
from flexmigrate.migration.ownership.policy import acknowledge
from flexmigrate.wire.handover import Opening, Outcome, State, fit_text

log = Logger()


class DiscVerdict(Enum):
    """The meaning of a plain sender's DISC at a destination."""

    OURS = "ours"
    NOT_OURS = "not ours"


class DestinationHandover:
    """The steps of a handover at the destination.

    :ivar listens_at: returns the addresses at which the server listens for sources.
    :ivar by_session: whether it came by a session, whose source may ask again.
    :ivar unrecorded: why the last sender could not be recorded; None if it could, or could be now.
    :ivar lost: called with the reason once the received file has no name any more, and nothing of
        it can be kept.
    :ivar read_only: whether clients may not change the image, even if they could at its source.
    """

    def __init__(
        self,
        storage: FileStorage,
        ownership: Ownership,
        *,
        full_coverage: bool = True,
    ) -> None:
        self._image = storage.image
        self._storage = storage
        self._full_coverage = full_coverage
        self.ownership = ownership
        self.listens_at: Callable[[], Sequence[str]] = tuple
        self.lost: Callable[[str], object] = lambda reason: None
        self._was_given = False
        self._was_touched = False  # a sender was let in
        self.unrecorded: str | None = None
        self._is_looking_for_room = False
        self.by_session = self.owned
        self.read_only = False

    @property
    def owned(self) -> bool:
        """Whether the image is ours."""
        return self.ownership.image_state.is_owned(serving=False)

    @property
    def marker(self) -> str:
        """Path of the file that stands exactly while the image is incomplete.

        Beside the image itself: whoever comes by another link, or from another folder, finds it.
        """
        return self.ownership.marker_path

    def expect(self) -> None:
        """Set the marker, durably, before the first byte is received.

        :raises ImageError: where it can't be written.
        """
        self.ownership.expect()

    def stop_expecting(self) -> None:
        """Leave the image as it was found, if no sender was let in."""
        if self._was_touched:
            return
        try:
            self.ownership.stop_expecting()
        except OSError as error:
            log.warn(
                "{marker} can't be removed, though nobody has touched the image: {error}",
                marker=self.marker,
                error=in_words(error),
            )

    def judge(self, coverage: Coverage) -> str | None:
        """Return why what was received isn't the whole image, or None if it is."""
        if not coverage.writes:
            return "it sent no data"
        if coverage.spoiled is not None:
            return coverage.spoiled
        if self._full_coverage and not coverage.complete:
            missing = coverage.size - coverage.covered
            return f"{missing} of {coverage.size} bytes were never written, zeroed or trimmed"
        if self._image.durability.is_rewriting and not coverage.complete:
            # Where not all has to come, this is new to the sender.
            return "a flush has failed before, and not every byte was written since"
        return None

    def look(self) -> Deferred[None]:
        """See whether what is received into is still there, by its name, and tell where it isn't.
        Never fails.
        """
        looking = Deferred.fromCoroutine(self._look())
        return looking.addErrback(
            lambda failure: log.failure(
                "checking the records failed with an unexpected error", failure
            )
        )

    async def _look(self) -> None:
        if self._is_needed:
            return
        fault = await self._storage.run(self._image.given_name_fault)
        if fault is not None and not self._is_needed:
            self.lost(f"{fault}; what was received has no name by which it could be kept")

    @property
    def _is_needed(self) -> bool:
        """Whether what is here may be all that there is, so that it has to stay open, whatever has
        become of its name: somebody may put it back, or copy it.
        """
        return self._was_given or self.ownership.state in (State.PREPARED, State.OWNER)

    async def _fault(self) -> str | None:
        """Return why what was received can't be called the image at its path, or None."""
        fault = await self._storage.run(self._image.given_name_fault)
        return fault or self._image.size_fault()

    async def _flush(self) -> None:
        """Make durable what was received, which is all there is."""
        await self._storage.flush()
        if self._image.durability.is_rewriting:
            await self._storage.run(self._image.durability.rewritten)

    # The beginning of an attempt

    def begin(self) -> Deferred[bool]:
        """Make sure, before the first byte comes, that what an earlier attempt has left here can be
        compared with what the source has; fire with whether it can.
        """
        self._was_touched = True
        return Deferred.fromCoroutine(self._begin())

    async def _begin(self) -> bool:
        self._image.cut = None  # all comes anew
        durability = self._image.durability
        known = durability.failure
        trusted = await self._storage.run(durability.begin_receiving)
        failure = known or durability.failure
        if not trusted:
            log.warn(
                "{path}: a flush has failed ({failure}), and the page cache can't be emptied: what "
                "is there isn't believed, and everything has to be sent again",
                path=self._image.path,
                failure=failure.text if failure is not None else "",
            )
        elif failure is not None:
            log.info(
                "{path}: a flush has failed ({failure}), so the page cache was emptied: what is "
                "compared is what the disk has",
                path=self._image.path,
                failure=failure.text,
            )
        return trusted

    # The plain handover

    def take(self, coverage: Coverage) -> Deferred[DiscVerdict]:
        """Decide about a DISC: flush, remove the marker, own the image; or don't.

        Fails with OSError where the image can't be flushed or that it is ours can't be recorded,
        and with ImageLost where it has no name any more; it isn't ours then.
        """
        return Deferred.fromCoroutine(self._take(coverage))

    async def _take(self, coverage: Coverage) -> DiscVerdict:
        refusal = self.judge(coverage)
        if refusal is not None:
            log.error("the sender said DISC, but {refusal}: not taking over", refusal=refusal)
            return DiscVerdict.NOT_OURS
        self._was_given = True  # its sender may have removed its own
        try:
            await self._flush()
            fault = await self._fault()
            if fault is not None:
                raise ImageLost(fault)
            own = partial(self.ownership.own_plainly, read_only=self.read_only)
            await self._storage.run(own)
        except (OSError, ImageLost) as error:
            # The sender may have given it away: it could be the only copy.
            self.ownership.doubt(f"what is here may be the image, complete: {in_words(error)}")
            log.error(
                "{path} is complete, and that can't be made durable or recorded: {error}. Its "
                "sender may have given it away, so nobody may send here any more. If it has, end "
                "this process, then 'flexmigrate take {path}'; if the file has no name any more, "
                "first copy it from /proc/{pid}/fd/{fd}",
                path=self._image.path,
                error=in_words(error),
                pid=os.getpid(),
                fd=self._image.fd,
            )
            raise
        await self._clear_marker()
        return DiscVerdict.OURS

    # A session

    def receive(self, opening: Opening, address: str) -> Deferred[None]:
        """Record, before the first byte comes, what is received. Fails with OSError; then those who
        come are told why, see ``unrecorded``.
        """
        receive = partial(self.ownership.receive, read_only=self.read_only)
        recording = self._storage.run(receive, opening, address, self.listens_at())
        return recording.addErrback(self._not_recorded)

    def _not_recorded(self, failure: Failure) -> Failure:
        self.unrecorded = f"what is sent can't be recorded: {failures.reason(failure)}"
        return failure

    def look_for_room(self) -> None:
        """See, while those who come are refused for it, whether there can be a record again."""
        if self._is_looking_for_room:
            return

        def looked(result: object) -> None:
            self._is_looking_for_room = False
            if not isinstance(result, Failure):
                self.unrecorded = None

        self._is_looking_for_room = True
        self._storage.run(self.ownership.probe).addBoth(looked)

    def prepare(
        self, coverage: Coverage, digest: str = "", claimed: str | None = None
    ) -> Deferred[Outcome]:
        """See that all is here, make it durable, and be prepared for COMMIT. Fails with OSError.

        :param digest: of the image, as it was compared; empty if not all of it was.
        :param claimed: the source's, which has to be the same; None if it claims none.
        """
        return Deferred.fromCoroutine(self._prepare(coverage, digest, claimed))

    async def _prepare(self, coverage: Coverage, digest: str, claimed: str | None) -> Outcome:
        refusal = self.judge(coverage)
        if refusal is None and claimed not in (None, digest):
            found = digest or "not known"
            refusal = f"the image's digest is {found} here, and {claimed} at the source"
        if refusal is not None:
            return Outcome(self.ownership.state, fit_text(refusal))
        await self._flush()
        # Last of all: from here on it is taken for the image, whatever becomes of its name.
        refusal = await self._fault()
        if refusal is not None:
            return Outcome(self.ownership.state, fit_text(refusal))
        await self._storage.run(self.ownership.prepare, digest)
        return Outcome(self.ownership.state)

    def own(self) -> Deferred[None]:
        """The source has committed: own the image. It may be asked again where that fails: with
        OSError, or with ImageLost, where the file has lost its name or its size: somebody may put
        it back, and as long as nobody owns it, the source keeps its copy.
        """
        return Deferred.fromCoroutine(self._own())

    async def _own(self) -> None:
        fault = await self._fault()
        if fault is not None:
            raise ImageLost(f"the image can't be taken over: {fault}")
        await self._storage.run(self.ownership.own)
        self.by_session = True
        await self._clear_marker()

    async def _clear_marker(self) -> None:
        """Remove the marker, which means nothing any more; before anybody is told that the image is
        here, since whoever is may look for it.
        """
        try:
            await self._storage.run(self.ownership.clear_marker)
        except OSError as error:
            log.error(
                "{marker} can't be removed, and means nothing any more: {error}",
                marker=self.marker,
                error=error,
            )

    def acknowledge(self) -> Deferred[None]:
        """The source knows that the image is ours; record it. Never fails."""
        return acknowledge(self.ownership, self._storage)
