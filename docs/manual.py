"""Writes the page of the manual, flexmigrate(1), from the options and from the reference.

    python docs/manual.py PATH

The commands come from their table, the rest from sections of ``operators.rst``: a page of the
manual is where an operator looks first, and says the same. docutils makes a page of it.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.core import publish_string
from docutils.parsers.rst import roles

from flexmigrate import __version__
from flexmigrate.cli.commands import COMMANDS
from flexmigrate.cli.option import Flag, ValueOption
from flexmigrate.cli.options import QUIET, VERBOSE

DOCS = Path(__file__).parent

# Those of the reference that somebody looks for at a terminal.
SECTIONS = (
    "Exit statuses",
    "Signals",
    "Files",
    "Where a server listens",
    "Several exports",
    "Certificates",
    "Check a host with the doctor",
    "Environment",
)

_WIDTH = 68  # characters, of a line of a synopsis: man(1) indents it

_HEAD = f"""\
===========
flexmigrate
===========

-------------------------------------------------------------------------
serve a disk image over NBD, and migrate it to another host while in use
-------------------------------------------------------------------------

:Manual section: 1
:Manual group: flexmigrate
:Version: flexmigrate {__version__}

Synopsis
--------

| flexmigrate COMMAND [OPTIONS]
| flexmigrate help [COMMAND]
| flexmigrate --version
| twistd [-n] flexmigrate serve|listen [OPTIONS]

Description
-----------

``serve`` offers a disk image as a network block device. ``mirror`` has it sent to a ``listen``,
on the same or another host, while clients go on using it. At the end the image belongs to the
destination, and the exit statuses of both servers say so.

Sizes and rates take the suffixes K, M, G and T, which are powers of 1024.

Commands
--------

"""

_TAIL = """\
See also
--------

**nbd-client**\\ (8), **qemu-nbd**\\ (8), **nbdinfo**\\ (1), **systemd.service**\\ (5),
**twistd**\\ (1)
"""


def source() -> str:
    """Return the page as reStructuredText."""
    return _HEAD + "\n".join(_commands()) + "\n" + "\n".join(_sections()) + _TAIL


def _commands() -> Iterator[str]:
    for name, command in COMMANDS.items():
        summary = f"{command.summary[0].upper()}{command.summary[1:]}."
        yield from (name, "~" * len(name), "", summary, "", "::", "")
        yield from textwrap.wrap(
            f"flexmigrate {name} {command.synopsis}",
            _WIDTH,
            initial_indent="    ",
            subsequent_indent="        ",
            break_on_hyphens=False,
        )
        yield ""
        for option in command.options:
            yield from (_spelling(option), f"    {_quoted(option.help)}", "")
        if command.words is not None:
            yield from (command.words.metavar, f"    {_quoted(command.words.help)}", "")
    yield from ("All commands", "~~~~~~~~~~~~", "")
    for flag in (VERBOSE, QUIET):
        yield from (_spelling(flag), f"    {_quoted(flag.help)}", "")


def _spelling(option: Flag | ValueOption[object]) -> str:
    spellings = [*([f"-{option.short}"] if option.short else []), f"--{option.long}"]
    shown = ", ".join(f"**{each}**" for each in spellings)
    return f"{shown} {option.metavar}" if isinstance(option, ValueOption) else shown


def _quoted(text: str) -> str:
    """Return *text* without what reStructuredText would take for markup."""
    return re.sub(r"([\\*`|_<:])", r"\\\1", text)


def _sections() -> Iterator[str]:
    text = (DOCS / "operators.rst").read_text()
    for title in SECTIONS:
        # To the next title of this rank, or the end.
        found = re.search(
            rf"^{title}\n-+\n.*?(?=^\S[^\n]*\n-+$|\Z)", text, re.MULTILINE | re.DOTALL
        )
        if found is None:
            raise LookupError(f"operators.rst has no section {title!r}")
        yield found[0]


def _reference(
    _role: str, rawtext: str, text: str, *_place: Any, **_options: Any
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    """Make of a reference to another page, which a page of the manual can't link to, its name."""
    return [nodes.literal(rawtext, text)], []


def _term(
    _role: str, _rawtext: str, text: str, *_place: Any, **_options: Any
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    """Make of a term of the glossary its words: ``words <term>`` is how it is written in full."""
    return [nodes.Text(re.sub(r" <[^>]+>$", "", text))], []


def page() -> bytes:
    """Return the page, for man(1)."""
    for role in ("doc", "ref"):  # Sphinx's, for the site
        roles.register_local_role(role, _reference)
    roles.register_local_role("term", _term)
    settings = {
        "report_level": 2,
        "halt_level": 2,  # a warning is an error
        "syntax_highlight": "none",
        "output_encoding": "utf-8",
        "_disable_config": True,
    }
    made: bytes = publish_string(source(), writer="manpage", settings_overrides=settings)
    return made


def main(path: str) -> None:
    """Write the page to *path*."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(page())


if __name__ == "__main__":
    main(sys.argv[1])
