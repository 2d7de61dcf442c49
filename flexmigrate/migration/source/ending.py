"""The ends of a migration that had begun: the values that the source's ``finished`` fires with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flexmigrate.telemetry.history import Verdict


@dataclass(frozen=True)
class Ending:
    """The end of a migration.

    :ivar reason: why it did not succeed; None where it did.
    :ivar verdict: as the summary has it.
    :ivar gave_away: whether the image is the destination's, or may be: it isn't served here again.
    """

    verdict: ClassVar[Verdict]
    gave_away: ClassVar[bool]
    reason: str | None = None


class GivenAway(Ending):
    """The image is the destination's, which has confirmed it."""

    verdict = "complete"
    gave_away = True


class Copied(Ending):
    """The destination has a copy; the image is still the source's."""

    verdict = "copied"
    gave_away = False


class Kept(Ending):
    """It was ended before its time; the image is still the source's."""

    verdict = "broken"
    gave_away = False


class Unconfirmed(Ending):
    """The image may be the destination's, which has not confirmed it."""

    verdict = "unconfirmed"
    gave_away = True
