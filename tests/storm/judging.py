"""What must hold of two images once everybody is dead: said from the disks alone."""

from __future__ import annotations

from pathlib import Path

from support.processes import Children, flexmigrate
from support.record import Record

OWN, OTHER, UNKNOWN = 0, 3, 4  # the exit statuses of whose


class Violation(AssertionError):
    """What must not have happened."""


class Ends:
    """The two images, with what lies beside them.

    :ivar source: the source's image.
    :ivar copy: the destination's.
    """

    def __init__(self, source: Path, copy: Path) -> None:
        self.source = source
        self.copy = copy

    def canonical(self, plain: bool) -> Path:
        """Return the image that ``whose`` names, asked at both ends with the other's journal.

        Where a plain handover was not confirmed it can't tell. A human is asked to look then, and
        this does what the documentation tells them: the source's file is gone, or the marker is,
        or neither.

        :raises Violation: there isn't exactly one.
        """
        said = self._whose(self.source, self.copy), self._whose(self.copy, self.source)
        if said == (OWN, OTHER):
            return self.source
        if said == (OTHER, OWN):
            return self.copy
        if plain and said[0] == UNKNOWN:
            taken = not self.source.exists() or not beside(self.copy, "INCOMPLETE").exists()
            return self.copy if taken else self.source
        raise Violation(f"whose answers {said[0]} at the source, and {said[1]} at the destination")

    def _whose(self, image: Path, other: Path) -> int:
        words = ["whose", str(image)]
        if (journal := beside(other, "handover")).exists():
            words += ["--peer-journal", str(journal)]
        done = flexmigrate(*words)
        if done.returncode not in (OWN, OTHER, UNKNOWN):
            raise Violation(f"whose {image}: {done}")
        return done.returncode

    def judge(self, record: Record, children: Children, plain: bool) -> Path:
        """Check that one image is canonical, holds what was promised, and is the only one served.

        :param record: what was written, and what of that was acknowledged.
        :return: the canonical image.
        :raises Violation: it is not so.
        """
        canonical = self.canonical(plain)
        if not canonical.exists():
            raise Violation(f"{canonical} is canonical, and there is no such file")
        if canonical.stat().st_size != self.copy.stat().st_size:
            raise Violation(f"{canonical} is canonical, and has another size")
        if faults := list(record.faults(canonical)):
            raise Violation(f"{canonical} is canonical, and {len(faults)} blocks: {faults[0]}")
        for image in self.served(children):
            if image != canonical:
                raise Violation(f"{canonical} is canonical, and {image} is served")
        return canonical

    def served(self, children: Children) -> list[Path]:
        """Start a server of each image; return those that come to listen, and end them."""
        started = [
            (image, children.flexmigrate("serve", "-l", f"{image}.nbd", "-f", str(image)))
            for image in (self.source, self.copy)
            if image.exists()
        ]
        found = []
        for image, server in started:
            try:
                server.listening()
                found.append(image)
            except AssertionError:
                if server.wait() != 1:
                    raise Violation(f"a refusal has status 1\n{server.story()}") from None
            finally:
                server.end()
        return found


def beside(image: Path, suffix: str) -> Path:
    """Return the path of what lies beside an image under its name."""
    return image.with_name(f"{image.name}.{suffix}")
