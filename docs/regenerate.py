"""Rewrites those parts of the documentation that follow from the code.

    python docs/regenerate.py            write them
    python docs/regenerate.py --check    exit with 1, naming the files, if one isn't up to date

Such a part stands between two comments, ``.. begin NAME`` and ``.. end NAME``; all around it is
written by hand. A test runs the check, so that a table can't say what the code doesn't do.

The paths of ``paths.py`` are drawn by that. The state machines are drawn by Graphviz's ``dot``.
Such a drawing carries the digest of what it was drawn from, so that neither the check nor the site
needs ``dot``; only a machine that has changed does.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import paths
from automat import TypeMachineBuilder

from flexmigrate.cli.commands import COMMANDS
from flexmigrate.cli.config_file import kind_of
from flexmigrate.cli.option import Flag, ValueOption
from flexmigrate.cli.options import QUIET, VERBOSE
from flexmigrate.cli.parsing import file_settings
from flexmigrate.image.filesystems import KNOWN
from flexmigrate.migration.destination import machine as destination
from flexmigrate.migration.source import machine as source
from flexmigrate.service import rebind
from flexmigrate.telemetry.fields import documented
from flexmigrate.telemetry.history import Sample
from flexmigrate.telemetry.states import DestinationState, SourceState
from flexmigrate.telemetry.status import Status
from flexmigrate.web.catalogue import OF_EXPORTS, OF_SERVER

DOCS = Path(__file__).parent
WIDTH = 100  # characters, of a line of the documentation
CELL = 60  # characters, of the last column of a table

_PART = re.compile(
    r"(?P<begin>^\.\. begin (?P<name>\S+)\n).*?(?P<end>^\.\. end (?P=name)$)",
    re.MULTILINE | re.DOTALL,
)

# Constants of the protocol's reference, with what their numbers count. The reasons stand beside
# the constants.
LIMITS = (
    ("wire.constants", "MAX_PAYLOAD", "bytes of one request, as it is advertised, and as we send"),
    ("wire.constants", "MAX_REQUEST", "bytes read or written by one request, if a client asks"),
    ("wire.requests", "MAX_DRAIN", "bytes of a refused payload that are read and thrown away"),
    ("wire.requests", "MAX_EFFECT", "bytes that one request without payload may affect"),
    ("wire.constants", "MAX_STRING", "bytes of a name, a description or a message"),
    ("wire.constants", "MAX_OPTIONS", "options on one connection"),
    ("wire.constants", "MAX_OPTION_LENGTH", "bytes of an option's data"),
    ("wire.constants", "MAX_DRAINED_OPTION", "bytes of a refused option that are thrown away"),
    ("wire.constants", "MAX_QUERIES", "metadata queries in one option"),
    ("wire.constants", "MAX_ANSWERS", "bytes of all answers to the options of one connection"),
    ("server.contexts", "MAX_DESCRIPTORS", "extents of one context in an answer to BLOCK_STATUS"),
    ("server.commands", "MAX_UNDER_WAY", "requests of a connection that wait for the disk at once"),
    ("wire.constants", "MAX_OPTION_REPLY", "bytes of one option reply that our client takes"),
    ("wire.constants", "MAX_OPTION_REPLIES", "bytes of all replies to one option, likewise"),
    ("wire.reply_parser", "MAX_STATUS_EXTENTS", "extents in one answer that our client takes"),
    ("wire.reply_parser", "MAX_ERROR_PAYLOAD", "bytes of an error chunk that our client takes"),
)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a simple table; the last column is wrapped."""
    *narrow, _ = zip(header, *rows, strict=True)
    widths = [max(map(len, column)) for column in narrow]
    last = max(len(header[-1]), CELL)

    def line(cells: Sequence[str]) -> str:
        padded = (f"{cell:<{width}}" for cell, width in zip(cells, [*widths, 0], strict=True))
        return "  ".join(padded).rstrip()

    rule = line(["=" * width for width in widths] + ["=" * last])
    yield from (rule, line(header), rule)
    for *cells, text in rows:
        first, *others = textwrap.wrap(text, last, break_on_hyphens=False) or [""]
        yield line([*cells, first])
        yield from (line([""] * len(cells) + [other]) for other in others)
    yield rule


def commands() -> Iterator[str]:
    """Yield a section for each command of the command line."""
    for name, command in COMMANDS.items():
        summary = f"{command.summary[0].upper()}{command.summary[1:]}."
        yield from (name, "-" * len(name), "", summary, "", "::", "")
        yield from textwrap.wrap(
            f"flexmigrate {name} {command.synopsis}",
            WIDTH,
            initial_indent="    ",
            subsequent_indent="        ",
            break_on_hyphens=False,
        )
        rows = [(f"``{_spelling(option)}``", option.help) for option in command.options]
        if command.words is not None:
            rows.append((f"``{command.words.metavar}``", command.words.help))
        yield from ("", *table(("option", "meaning"), rows), "")
    yield "All commands take these, too."
    rows = [(f"``{_spelling(flag)}``", flag.help) for flag in (VERBOSE, QUIET)]
    yield from ("", *table(("option", "meaning"), rows))


def _spelling(option: Flag | ValueOption[Any]) -> str:
    short = f"-{option.short}, " if option.short else ""
    value = f" {option.metavar}" if isinstance(option, ValueOption) else ""
    return f"{short}--{option.long}{value}"


def settings() -> Iterator[str]:
    """Yield the table of what can stand in a configuration file."""
    commands = file_settings()
    keys = {key: None for known in commands.values() for key in known}
    rows = []
    for key in keys:
        kinds = {name: kind_of(known[key]) for name, known in commands.items() if key in known}
        if len(set(kinds.values())) == 1:
            rows.append((f"``{key}``", ", ".join(kinds), next(iter(kinds.values()))))
        else:
            rows += [(f"``{key}``", name, kind) for name, kind in kinds.items()]
    yield from table(("key", "of", "value"), rows)


def told(kind: type) -> Callable[[], Iterator[str]]:
    """Return what yields the table of the fields of a dataclass that is told to operators."""

    def lines() -> Iterator[str]:
        rows = [(f"``{each.name}``", each.unit or "-", each.doc) for each in documented(kind)]
        yield from table(("field", "unit", "meaning"), rows)

    return lines


def metrics() -> Iterator[str]:
    """Yield the table of the metrics."""
    rows = [
        (
            f"``{metric.full_name}``",
            metric.kind,
            ", ".join(f"``{label}``" for label in (*common, *metric.labels)) or "-",
            metric.doc,
        )
        for common, known in (((), OF_SERVER), (("export",), OF_EXPORTS))
        for metric in known
    ]
    yield from table(("metric", "type", "labels", "meaning"), rows)


def limits() -> Iterator[str]:
    """Yield the table of the wire's limits."""
    rows = []
    for module, name, counts in LIMITS:
        value = getattr(importlib.import_module(f"flexmigrate.{module}"), name)
        rows.append((f"``{module}.{name}``", f"{value:,}", counts))
    yield from table(("constant", "value", "counts"), rows)


def filesystems() -> Iterator[str]:
    """Yield the table of filesystems whose holes are known to be holes."""
    rows = [(name, f"{why[0].upper()}{why[1:]}.") for name, why in KNOWN.values()]
    yield from table(("filesystem", "why it is trusted"), rows)


def states(builder: TypeMachineBuilder[Any, Any]) -> Callable[[], Iterator[str]]:
    """Return what yields the tables of a state machine: its inputs, then its transitions."""

    def lines() -> Iterator[str]:
        automaton = builder._automaton  # the one way to ask a typed machine for its transitions
        inputs = _inputs(builder.inputProtocol)
        yield from table(("input", "meaning"), list(inputs.items()))
        yield from ("", f"It begins in ``{_initial(builder)}``.", "")
        order = list(inputs)
        names = _in_order(builder)
        rows = [
            (
                state.name,
                f"``{_shown(given)}``",
                "(stays)" if state is following else following.name,
                _doings(outputs),
            )
            for state, given, following, outputs in automaton.allTransitions()
        ]
        rows.sort(key=lambda row: (names.index(row[0]), order.index(row[1])))
        yield from table(("state", "input", "next state", "what is done"), rows)

    return lines


def diagram(builder: TypeMachineBuilder[Any, Any]) -> str:
    """Return a state machine in Graphviz's language: what leads from one state to another.

    What stays in its state isn't drawn; the tables have it. A state that nothing leaves has two
    lines around it.
    """
    order = list(_inputs(builder.inputProtocol))
    names = _in_order(builder)
    edges: dict[tuple[str, str], list[str]] = {}
    for state, given, following, _ in builder._automaton.allTransitions():
        if state is not following:
            edges.setdefault((state.name, following.name), []).append(_shown(given))
    left = {before for before, _ in edges}
    lines = [
        "digraph {",
        'node [shape=box, style=rounded, fontname="sans-serif", fontsize=12]',
        'edge [fontname="sans-serif", fontsize=10, color="#555555", fontcolor="#333333"]',
        "begin [shape=point]",
        *(f'"{name}"{"" if name in left else " [peripheries=2]"}' for name in names),
        f'begin -> "{_initial(builder)}"',
    ]
    for before, after in sorted(
        edges, key=lambda edge: (names.index(edge[0]), names.index(edge[1]))
    ):
        inputs = sorted(edges[before, after], key=lambda each: order.index(f"``{each}``"))
        lines.append(f'"{before}" -> "{after}" [label=" {_LINE.join(inputs)} "]')
    return "\n".join([*lines, "}"]) + "\n"


_LINE = r" \n "  # a new line of a label


def drawn_from(text: str) -> str:
    """Return the line that tells of a drawing what it was drawn from."""
    return f"<!-- drawn from {hashlib.sha256(text.encode()).hexdigest()} -->\n"


def drawing(text: str) -> str:
    """Return the SVG that Graphviz makes of *text*, with the line that tells so.

    :raises FileNotFoundError: if there is no ``dot``
    """
    dot = ["dot", "-Tsvg"]
    made = subprocess.run(dot, input=text, capture_output=True, text=True, check=True, timeout=60)
    return made.stdout.rstrip("\n") + "\n" + drawn_from(text)


def _shown(given: str) -> str:
    return given.lstrip("_")


def _inputs(protocol: object) -> dict[str, str]:
    """Return the inputs in the order of the source, with what each means."""
    found = {}
    for name, member in vars(protocol).items():
        if inspect.isfunction(member) and inspect.getdoc(member) and not name.startswith("__"):
            found[f"``{_shown(name)}``"] = " ".join((inspect.getdoc(member) or "").split())
    return found


def _initial(builder: TypeMachineBuilder[Any, Any]) -> str:
    return str(builder._automaton.initialState.name)


def _in_order(builder: TypeMachineBuilder[Any, Any]) -> list[str]:
    """Return the states' names in the order in which the module declares them."""
    module = sys.modules[builder.inputProtocol.__module__]
    return re.findall(r'^\w+ = builder\.state\("(\w+)"', inspect.getsource(module), re.MULTILINE)


def _doings(outputs: Sequence[Any]) -> str:
    """Name what a transition calls: its behaviour, then the step that the next state begins."""
    behaviours = [output.method for output in outputs if hasattr(output, "method")]
    steps = [output.dataFactory for output in outputs if hasattr(output, "dataFactory")]
    names = [each.__name__ for each in (*behaviours, *steps)]
    # Automat calls `returns(None)` what does nothing.
    return ", then ".join(f"``{name}``" for name in names if not name.startswith("returns")) or "-"


def path(name: str) -> Callable[[], Iterator[str]]:
    """Return what yields the table of a path through the code."""

    def lines() -> Iterator[str]:
        header = ("step", "file", "function", "what it does")
        yield from table(header, list(paths.rows(paths.PATHS[name])))

    return lines


MACHINES: dict[str, TypeMachineBuilder[Any, Any]] = {
    "source": source.builder,
    "destination": destination.builder,
    "rebind": rebind.builder,
}


def meanings(kind: type[SourceState] | type[DestinationState]) -> Callable[[], Iterator[str]]:
    """Return what yields the table of the states that are told."""

    def lines() -> Iterator[str]:
        rows = [(f"``{each.label}``", f"``{each.phase}``", each.meaning) for each in kind]
        yield from table(("state", "phase", "meaning"), rows)

    return lines


PARTS: dict[str, Callable[[], Iterator[str]]] = {
    "commands": commands,
    "settings": settings,
    "status": told(Status),
    "samples": told(Sample),
    "limits": limits,
    "filesystems": filesystems,
    "metrics": metrics,
    "source-meanings": meanings(SourceState),
    "destination-meanings": meanings(DestinationState),
    **{name: states(builder) for name, builder in MACHINES.items()},
    **{f"path-{name}": path(name) for name in paths.PATHS},
}


def renewed(text: str) -> str:
    """Return a document with its parts as the code has them now.

    :raises KeyError: if it has a part that nobody makes
    """

    def renew(part: re.Match[str]) -> str:
        lines = "\n".join(PARTS[part["name"]]())
        return f"{part['begin']}\n{lines}\n\n{part['end']}"

    return _PART.sub(renew, text)


def _figures() -> Iterator[tuple[Path, Callable[[], str]]]:
    """Yield each drawing that isn't up to date, and what makes it."""
    for name, builder in MACHINES.items():
        figure, text = DOCS / "figures" / f"states-{name}.svg", diagram(builder)
        if not figure.exists() or not figure.read_text().endswith(drawn_from(text)):
            yield figure, partial(drawing, text)
    for name, each in paths.PATHS.items():
        figure = DOCS / "figures" / f"path-{name}.svg"
        if not figure.exists() or figure.read_text() != paths.drawing(each):
            yield figure, partial(paths.drawing, each)


def main(check: bool) -> int:
    """Rewrite the documents, or only *check* them; return the exit status."""
    stale = []
    for path in sorted(DOCS.glob("*.rst")):
        text = path.read_text()
        if (new := renewed(text)) != text:
            stale.append(path.name)
            if not check:
                path.write_text(new)
    for figure, content in _figures():
        stale.append(figure.name)
        if not check:
            figure.write_text(content())
    if stale:
        sys.stderr.write(f"{'not up to date' if check else 'rewritten'}: {', '.join(stale)}\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
