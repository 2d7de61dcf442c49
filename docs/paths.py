"""The path of COMMIT, and of the question that repeats it: who calls whom, at both ends.

`PATHS` is the source of the tables and the drawings of ``handover-path.rst``. A test records what a
real handover calls, and compares (``tests/docs/test_paths.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

LANE = 130  # points, from one file to the next
TOP = 64  # above the first step
ROW = 26  # from one step to the next
MARGIN = 70


_HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
    'font-family="sans-serif" font-size="11">\n'
    '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
    'markerHeight="7" orient="auto"><path d="M0 0 10 5 0 10z"/></marker></defs>'
)


@dataclass(frozen=True)
class Step:
    """A call.

    :ivar file: that is called, below ``flexmigrate/``, without its suffix.
    :ivar function: that is called there.
    :ivar caller: the file that calls; or, where nobody waits for the answer on the stack, from
        where it came to that.
    :ivar words: what it does.
    :ivar how: ``call``; ``message``, if it comes by NBD from the other end; or ``later``, if a
        thread, a timer or an answer was waited for.
    """

    file: str
    function: str
    caller: str
    words: str
    how: str = "call"


@dataclass(frozen=True)
class Path:
    """Steps, in the order in which they are taken for the first time.

    :ivar files: in the order in which they are drawn: the source's, then the destination's.
    """

    title: str
    files: Sequence[str]
    steps: Sequence[Step]

    def __post_init__(self) -> None:
        assert {step.file for step in self.steps} == set(self.files)
        assert {step.caller for step in self.steps} <= set(self.files)


SOURCE = "migration/source/machine"
ATTEMPT = "migration/source/attempt"
GIVING = "migration/source/handover"
POLICY = "migration/destination/policy"
DESTINATION = "migration/destination/machine"
TAKING = "migration/destination/handover"
RECEIVING = "service/receiving"
IN_DOUBT = "service/in_doubt"

_END = (
    Step(
        GIVING,
        "finish",
        ATTEMPT,
        "The journal says ``done``. With ``--unlink`` the file is removed. Sends DISC.",
    ),
    Step(POLICY, "disconnecting", GIVING, "DISC has come: the source knows.", "message"),
    Step(TAKING, "acknowledge", POLICY, "The destination's journal notes that."),
)

PATHS = {
    "commit": Path(
        "COMMIT",
        (SOURCE, ATTEMPT, GIVING, POLICY, DESTINATION, TAKING, RECEIVING),
        (
            Step(SOURCE, "_commit", ATTEMPT, "The destination is prepared.", "later"),
            Step(ATTEMPT, "commit", SOURCE, "Takes the step that can't be taken back."),
            Step(
                GIVING,
                "commit",
                ATTEMPT,
                "Checks the image's name. The journal says ``committed``, durably.",
            ),
            Step(SOURCE, "_confirm", SOURCE, "The state is ``confirming`` from here on."),
            Step(ATTEMPT, "confirm", SOURCE, "Uses the connection that there is."),
            Step(GIVING, "confirm", ATTEMPT, "Sends COMMIT, with the commit key."),
            Step(POLICY, "private", GIVING, "COMMIT has come.", "message"),
            Step(POLICY, "_commit", POLICY, "Checks the key, under the migration lock."),
            Step(DESTINATION, "_own", POLICY, "The state is ``owning``."),
            Step(TAKING, "own", DESTINATION, "The journal says ``owner``, durably."),
            Step(TAKING, "_clear_marker", TAKING, "The marker is removed.", "later"),
            Step(DESTINATION, "_owned_by_session", TAKING, "The state is ``complete``.", "later"),
            Step(RECEIVING, "_complete", DESTINATION, "Opens the serving address."),
            Step(DESTINATION, "confirm", RECEIVING, "COMMIT is answered."),
            Step(SOURCE, "_finish_giving", POLICY, "The answer has come.", "message"),
            Step(ATTEMPT, "finish_giving", SOURCE, "Closes the clients' connections."),
            *_END,
        ),
    ),
    "again": Path(
        "The source asks again",
        (SOURCE, ATTEMPT, GIVING, POLICY, TAKING),
        (
            Step(SOURCE, "_ask_again", GIVING, "No answer: asks again in a second.", "later"),
            Step(ATTEMPT, "let_go", SOURCE, "Closes the clients' connections."),
            Step(SOURCE, "_confirm", SOURCE, "A second is over.", "later"),
            Step(ATTEMPT, "confirm", SOURCE, "Connects, since the connection is lost."),
            Step(GIVING, "settling", ATTEMPT, "Makes the opening to SETTLE, with the commit key."),
            Step(POLICY, "_answer", GIVING, "The opening has come: checks the key.", "message"),
            Step(GIVING, "confirm", ATTEMPT, "Sends COMMIT, with the commit key."),
            Step(POLICY, "private", GIVING, "COMMIT has come.", "message"),
            Step(POLICY, "_commit", POLICY, "It is the owner already, and answers at once."),
            Step(SOURCE, "_finish_giving", POLICY, "The answer has come.", "message"),
            Step(ATTEMPT, "finish_giving", SOURCE, "Cleans up."),
            *_END,
        ),
    ),
    "in-doubt": Path(
        "A serve that is started on a committed image asks",
        (IN_DOUBT, GIVING, POLICY, DESTINATION, TAKING),
        (
            Step(IN_DOUBT, "opened", IN_DOUBT, "The image is not served.", "later"),
            Step(IN_DOUBT, "_settle", IN_DOUBT, "Asks the destination, once."),
            Step(GIVING, "settling", IN_DOUBT, "Makes the opening to SETTLE, with the commit key."),
            Step(POLICY, "_answer", GIVING, "The opening has come: checks the key.", "message"),
            Step(GIVING, "confirm", IN_DOUBT, "Sends COMMIT, with the commit key."),
            Step(POLICY, "private", GIVING, "COMMIT has come.", "message"),
            Step(POLICY, "_commit", POLICY, "Checks the key, under the migration lock."),
            Step(DESTINATION, "_own", POLICY, "If it wasn't the owner yet, it becomes that."),
            Step(TAKING, "own", DESTINATION, "The journal says ``owner``, durably."),
            Step(
                GIVING,
                "finish",
                IN_DOUBT,
                "The answer has come; the journal says ``done``. Sends DISC.",
            ),
            Step(POLICY, "disconnecting", GIVING, "DISC has come: the source knows.", "message"),
            Step(TAKING, "acknowledge", POLICY, "The destination's journal notes that."),
        ),
    ),
}


def rows(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """Yield the rows of a path's table: number, file, function, what it does."""
    for number, step in enumerate(path.steps, 1):
        yield str(number), f"``{step.file}.py``", f"``{step.function}``", step.words


def drawing(path: Path) -> str:
    """Return a path as a sequence diagram, in SVG."""
    places = {file: MARGIN + LANE * at for at, file in enumerate(path.files)}
    width = 2 * MARGIN + LANE * (len(path.files) - 1)
    height = TOP + ROW * (len(path.steps) + 1)
    lines = [
        _HEAD.format(width=width, height=height),
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for file, x in places.items():
        folder, _, name = file.rpartition("/")
        folder = folder.rpartition("/")[2]
        lines += [
            f'<text x="{x}" y="18" text-anchor="middle" fill="#555">{escape(folder)}</text>',
            f'<text x="{x}" y="34" text-anchor="middle" font-weight="bold">{name}</text>',
            f'<path d="M{x} 42V{height - 8}" stroke="#bbb" fill="none"/>',
        ]
    for number, step in enumerate(path.steps, 1):
        lines += _arrow(
            places[step.caller], places[step.file], TOP + ROW * number - 8, number, step
        )
    return "\n".join([*lines, "</svg>"]) + "\n"


def _arrow(begin: int, end: int, y: int, number: int, step: Step) -> Iterator[str]:
    dashed = ' stroke-dasharray="2 3"' if step.how == "later" else ""
    color = "#b00" if step.how == "message" else "#333"
    if begin == end:
        way, at = f"M{begin} {y - 8}h26v8H{end + 2}", begin + 30
    else:
        way, at = f"M{begin} {y}H{end + (2 if end < begin else -2)}", min(begin, end) + 6
    text = f"{number} {step.function}"
    yield f'<path d="{way}" stroke="{color}" fill="none"{dashed} marker-end="url(#head)"/>'
    # Where an arrow is long, its text stands in front of the lines that it crosses.
    yield (
        f'<text x="{at}" y="{y - 4}" stroke="white" stroke-width="3" paint-order="stroke" '
        f'fill="{color}">{escape(text)}</text>'
    )
