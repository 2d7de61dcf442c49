"""Which of two copies is the image: said in a sentence from their journals, and settled by a human
where only a human can.

The rules are two steps: what one journal says by itself (``_alone``), and what two say together
(``judge``). A journal that doesn't belong to the same migration adds nothing. Twisted is not
imported.
"""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass, replace

from flexmigrate.errors import ImageError
from flexmigrate.image import places
from flexmigrate.image.disk import SYSTEM
from flexmigrate.image.opening import open_image
from flexmigrate.migration.ownership import journal
from flexmigrate.migration.ownership.journal import JournalError, Record
from flexmigrate.migration.ownership.ownership import Ownership
from flexmigrate.migration.ownership.status import MARKER_SUFFIX, ImageState, look
from flexmigrate.wire.frames import display_text
from flexmigrate.wire.handover import NO_ID, State

BAD_SUFFIX = ".bad"
"""Behind the name of a journal that could not be trusted and was put aside, to be looked at."""


class CopyVerdict(enum.Enum):
    """Which copy is canonical: the one that holds what clients were last told is there."""

    THIS = "this"
    OTHER = "other"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Judgement:
    """A verdict on the copy that was asked about, and why, in a sentence."""

    verdict: CopyVerdict
    sentence: str


def judge(mine: ImageState, theirs: Record | None = None) -> Judgement:
    """Judge the copy that *mine* stands for, with the other side's record if that is known."""
    alone = _alone(mine)
    if theirs is None or mine.record is None:
        return alone
    record = mine.record
    if record.state is State.PREPARED and record.session in theirs.superseded:
        return Judgement(
            CopyVerdict.OTHER,
            f"The copy at {record.other_side} is canonical: its journal says that the handover "
            f"which {mine.path} waits for was given up before it was committed.",
        )
    if not _related(record, theirs):
        return Judgement(
            alone.verdict, f"{alone.sentence} (The other journal is of another migration.)"
        )
    other = _alone(ImageState(record.other_side, theirs, marker=False))
    return _together(mine, alone, theirs, other)


def _related(mine: Record, theirs: Record) -> bool:
    """Return whether both are about one migration, or one is about the successor of the other."""
    return (mine.session != NO_ID and mine.session in (theirs.session, theirs.origin)) or (
        theirs.session != NO_ID and theirs.session == mine.origin
    )


def _together(mine: ImageState, alone: Judgement, theirs: Record, other: Judgement) -> Judgement:
    assert mine.record is not None
    states = f"{mine.state.name.lower()} here, {theirs.state.name.lower()} there"
    this, that = alone.verdict, other.verdict
    if this is that is CopyVerdict.OTHER and mine.record.session == theirs.origin:
        return Judgement(
            CopyVerdict.OTHER,
            f"The image went from here to {mine.record.other_side}, and from there to "
            f"{theirs.other_side}, which has the canonical copy.",
        )
    if this is that:
        both = {
            CopyVerdict.THIS: "both say that they have it",
            CopyVerdict.OTHER: "each says that the other has it",
            CopyVerdict.UNKNOWN: "neither knows",
        }[this]
        return Judgement(
            CopyVerdict.UNKNOWN,
            f"Which copy is canonical can't be told from the journals: {both} ({states}).",
        )
    if CopyVerdict.UNKNOWN not in (this, that):
        return Judgement(this, f"{alone.sentence} The other journal says the same ({states}).")
    if that is CopyVerdict.UNKNOWN:
        return Judgement(this, f"{alone.sentence} ({states[0].upper()}{states[1:]}.)")
    verdict = CopyVerdict.OTHER if that is CopyVerdict.THIS else CopyVerdict.THIS
    where = mine.path if verdict is CopyVerdict.THIS else f"the copy at {mine.record.other_side}"
    return Judgement(verdict, f"{where} is canonical, as the other journal says ({states}).")


def _alone(image_state: ImageState) -> Judgement:
    """Judge by one journal."""
    path, record = image_state.path, image_state.record
    if record is None and image_state.marker:
        return Judgement(
            CopyVerdict.OTHER,
            f"{path} is not canonical: {image_state.place}{MARKER_SUFFIX} says that a migration "
            "into it never finished; its source has the image.",
        )
    if record is None:
        return Judgement(
            CopyVerdict.THIS,
            f"{path} is canonical as far as can be seen here: no handover was ever recorded.",
        )
    by_hand = f" Settled by hand: {record.settled[0]}." if record.settled else ""
    verdict, sentence = _BY_STATE[record.state](path, record)
    lost = image_state.what_came_is_lost
    if lost is None and image_state.is_missing and record.state is State.SENDING:
        lost = "is not there any more"
    if lost is not None:
        return Judgement(
            CopyVerdict.UNKNOWN,
            f"It can't be told here: the journal says {record.state.name.lower()}, but the image "
            f"that it is about was removed or renamed: {path} {lost}. Put it back, or look at "
            f"{record.other_side}.{by_hand}",
        )
    if image_state.recorded_at:
        by_hand += (
            f" (An attribute of the file says so: it was recorded in {image_state.recorded_at}.)"
        )
    return Judgement(verdict, sentence + by_hand)


def _sending(path: str, record: Record) -> tuple[CopyVerdict, str]:
    return CopyVerdict.THIS, (
        f"{path} is canonical: a migration to {record.other_side} was begun and not committed."
    )


def _committed(path: str, record: Record) -> tuple[CopyVerdict, str]:
    if record.plain:
        return CopyVerdict.UNKNOWN, (
            f"It can't be told here: {path} was being handed over to {record.other_side}, which "
            "did not confirm it; look for the marker there. Both hold the same bytes until one of "
            "them is written to."
        )
    return CopyVerdict.OTHER, (
        f"The copy at {record.other_side} is canonical: it had everything, durably, when the "
        f"handover of {path} was committed ({record.time})."
    )


def _done(path: str, record: Record) -> tuple[CopyVerdict, str]:
    if record.settled and record.session == NO_ID:
        return CopyVerdict.OTHER, f"{path} is not canonical: it was released."
    fate = ", and unlinked: a file of that name is another" if record.unlinked else ""
    return CopyVerdict.OTHER, (
        f"The copy at {record.other_side} is canonical: {path} was migrated there "
        f"({record.time}){fate}."
    )


def _receiving(path: str, record: Record) -> tuple[CopyVerdict, str]:
    return CopyVerdict.OTHER, (
        f"The copy at {record.other_side} is canonical: its migration to {path} never finished."
    )


def _prepared(path: str, record: Record) -> tuple[CopyVerdict, str]:
    return CopyVerdict.UNKNOWN, (
        f"It can't be told here: {path} has all that {record.other_side} had, and whether that "
        "has committed the handover, only its journal says."
    )


def _owner(path: str, record: Record) -> tuple[CopyVerdict, str]:
    return (
        CopyVerdict.THIS,
        f"{path} is canonical: it came from {record.other_side} ({record.time}).",
    )


_BY_STATE = {
    State.SENDING: _sending,
    State.COMMITTED: _committed,
    State.DONE: _done,
    State.RECEIVING: _receiving,
    State.PREPARED: _prepared,
    State.OWNER: _owner,
}


def load_peer(path: str) -> Record:
    """Return the other side's record, from a copy of its journal.

    :raises ImageError: there is none, or it can't be trusted.
    """
    return displayable(journal.load_copy(path))


def displayable(record: Record) -> Record:
    """Return another side's record with texts that do nothing to the terminal they are shown on."""

    def clean(text: str) -> str:
        return display_text(text.encode(errors="replace"))

    return replace(
        record,
        peer=clean(record.peer),
        address=clean(record.address),
        time=clean(record.time),
        settled=tuple(map(clean, record.settled)),
    )


def consequences(image_state: ImageState, state: State) -> list[str]:
    """Return what a human should know before the image is settled to be *state*: sentences."""
    judged = judge(image_state)
    if state is State.OWNER:
        text = [f"{image_state.path} will be the image from now on: it may be served."]
        if judged.verdict is not CopyVerdict.THIS:
            text.append(judged.sentence)
            text.append("If the other copy is in use, or ever will be, there are two owners.")
        if image_state.is_incomplete and image_state.state is not State.PREPARED:
            text.append("Nothing says that it is complete: parts of it may be missing.")
        return text
    gone = f"{image_state.path} will not be the image any more: it can't be served, and a "
    text = [gone + "migration may overwrite it."]
    if judged.verdict is not CopyVerdict.OTHER:
        text.append(judged.sentence)
        text.append("If there is no other copy, this gives up the only one.")
    return text


def settle(path: str, state: State, by: str) -> str:
    """Write in the journal that a human has settled it; return what was done, in a sentence.

    :param by: who, and why, for people.
    :raises ImageError: the image is in use, or the journal can't be read or written.
    """
    opened = open_image(path, read_only=False)
    try:
        _ownership(os.path.realpath(path), opened.size).settle(state, by)
    except OSError as error:
        raise ImageError(f"can't settle {path}: {error}") from error
    finally:
        os.close(opened.fd)
    said = "is the image now" if state is State.OWNER else "is not the image any more"
    return f"{path} {said}."


def look_to_settle(path: str) -> tuple[ImageState, str | None]:
    """Return how the image stands, for a human who is about to settle it, and what is wrong with
    its journal: one that can't be trusted doesn't stop a human.

    :raises ImageError: what lies beside the image can't be read.
    """
    try:
        return look(path), None
    except JournalError as error:
        return ImageState(os.path.realpath(path), None, marker=True), str(error)


def _ownership(path: str, size: int) -> Ownership:
    """Return what lies beside the image, after a journal that can't be trusted was put aside."""
    try:
        return Ownership(path, size)
    except JournalError:
        bad = journal.path_of(places.beside(SYSTEM, path))
        os.replace(bad, bad + BAD_SUFFIX)
        return Ownership(path, size)
