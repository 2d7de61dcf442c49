"""The settings of a server, a row for each in `SERVER_SETTINGS`.

The command line makes an option of each row, and the configuration file a key;
`flexmigrate.config.ServerConfig` has a field for it, and checks a program's value by the row. So
a new setting is one row here, a field there, and the code that uses it.

Settings made of several options, like an address and its port, are parsed in
``cli.combined``. Twisted is not imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from flexmigrate.errors import UsageError, check_type
from flexmigrate.migration.request import SETTINGS, format_yes, parse_name, parse_yes
from flexmigrate.net.address import (
    Address,
    BadAddress,
    parse_host,
    parse_port,
    parse_socket_path,
)
from flexmigrate.net.polling import LONGEST_POLL_SECONDS
from flexmigrate.server.limits import MOST_CLIENTS

CoverageRule = Literal["full", "any"]

# A place to listen on: an address, or the description of any Twisted server endpoint.
Place = Address | str

LONGEST_POLL = round(LONGEST_POLL_SECONDS * 1e6)
"""`LONGEST_POLL_SECONDS` in microseconds, the unit of the option."""


def parse_count(text: str) -> int:
    """Return a number of clients; ValueError if it isn't from 1 to `MOST_CLIENTS`."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MOST_CLIENTS):
        raise ValueError(f"{text!r} is not a number of clients from 1 to {MOST_CLIENTS}")
    return int(text)


def parse_poll(text: str) -> float:
    """Return the seconds of a number of microseconds; ValueError if it isn't from 0 to
    `LONGEST_POLL`.
    """
    if not (text.isascii() and text.isdigit() and int(text) <= LONGEST_POLL):
        raise ValueError(f"{text!r} is not a number of microseconds from 0 to {LONGEST_POLL}")
    return int(text) / 1e6


def format_poll(seconds: float) -> str:
    """Return *seconds* as `parse_poll` reads them."""
    return f"{seconds * 1e6:.0f}"


def parse_coverage(text: str) -> CoverageRule:
    """Return a rule of coverage; ValueError if *text* isn't one."""
    rules: dict[str, CoverageRule] = {"full": "full", "any": "any"}
    if text not in rules:
        raise ValueError(f"{text!r} is neither 'full' nor 'any'")
    return rules[text]


def parse_endpoint(text: str) -> str:
    """Return the description of a server endpoint, of which only the form is checked; ValueError
    if it is wrong.
    """
    kind, colon, _ = text.partition(":")
    if not colon or not kind.isalnum():
        raise ValueError(f"{text!r} is not a server endpoint, like tcp:10809 or unix:/run/nbd")
    return text


def parse_http_place(text: str) -> Place:
    """Return the place to serve HTTP at; a port alone means 127.0.0.1. ValueError if *text*
    is not a place.
    """
    if text.isdigit():
        return Address.tcp("127.0.0.1", parse_port(text))
    if text.startswith("/"):
        return Address.unix(parse_socket_path(text))
    host, _, port = text.rpartition(":")
    try:
        parsed = parse_host(host.removeprefix("[").removesuffix("]"))
    except BadAddress:
        return parse_endpoint(text)
    return Address.tcp(parsed, parse_port(port))


@dataclass(frozen=True)
class ServerSetting:
    """A row of `SERVER_SETTINGS`.

    :ivar field: the field of `flexmigrate.config.ServerConfig`, or of its subclass for a command.
    :ivar name: the name of the option, and of the key in a file.
    :ivar metavar: the value's name in the help; empty for an option without a value.
    :ivar help: the option's help.
    :ivar kinds: the types that a value may have.
    :ivar parse: makes the value from a text; raises ValueError with a message that quotes it.
    :ivar format: makes the text from a value.
    :ivar short: the option's letter; empty for none.
    :ivar listen_help: the help for ``listen``, if it is different.
    :ivar command: the command that has it; empty for both.
    :ivar clears: whether the option sets the field to False instead of True.
    """

    field: str
    name: str
    metavar: str
    help: str
    kinds: tuple[type, ...]
    parse: Callable[[str], Any]
    format: Callable[[Any], str] = str
    short: str = ""
    listen_help: str = ""
    command: str = ""
    clears: bool = False

    def is_of(self, command: str) -> bool:
        """Return whether *command* has it."""
        return self.command in ("", command)

    def help_of(self, command: str) -> str:
        """Return the option's help for *command*."""
        return self.listen_help if command == "listen" and self.listen_help else self.help

    def check(self, value: Any) -> None:
        """Check that the field may have *value*.

        :raises UsageError: it isn't.
        """
        check_type(self.field, value, *self.kinds)
        try:
            self.parse(self.format(value))
        except ValueError as error:
            raise UsageError(f"{self.field}={value!r}: {error}") from None


def _flag(field: str, name: str, meaning: str, **more: Any) -> ServerSetting:
    return ServerSetting(field, name, "", meaning, (bool,), parse_yes, format_yes, **more)


_OLD_PEERS = next(each for each in SETTINGS if each.field == "allow_old_peers")

SERVER_SETTINGS = (
    ServerSetting(
        "default_export",
        "default-export",
        "NAME",
        "the export of clients that name none (default: the first)",
        (str,),
        parse_name,
        command="serve",
    ),
    ServerSetting(
        "export",
        "export",
        "NAME",
        "name under which the image is received, and then served; also for clients that name none"
        ' (default: "")',
        (str,),
        parse_name,
        command="listen",
    ),
    _flag(
        "listable",
        "no-list",
        "don't list the exports for clients (default: list them)",
        clears=True,
    ),
    ServerSetting(
        "sock",
        "sock",
        "SOCK",
        "path of a UNIX socket to open for the operator, mode 0600 (default: none)",
        (str,),
        parse_socket_path,
        short="s",
    ),
    _flag(
        "default_deny",
        "default-deny",
        "an empty access list admits nobody (default: it admits everybody)",
        short="d",
    ),
    _flag(
        "killswitch",
        "killswitch",
        "close the connection of a client whose request is not complete after 120 s (default:"
        " wait)",
        short="k",
    ),
    _flag(
        "oldstyle",
        "oldstyle",
        "speak flexnbd's oldstyle handshake (default: fixed newstyle)",
    ),
    _flag(
        "read_only",
        "read-only",
        "offer the image for reading only (default: for writing, too)",
        listen_help="once the image has come, serve it for reading only (default: as its source"
        " serves it)",
    ),
    ServerSetting(
        "coverage",
        "coverage",
        "full|any",
        "part that a sender must have written, zeroed or trimmed for a complete migration: every"
        " byte, or anything (default: full)",
        (str,),
        parse_coverage,
        command="listen",
    ),
    ServerSetting(
        "max_clients",
        "max-clients",
        "N",
        "maximum of connections at the same time, 1 to 100000 (default: 10000)",
        (int,),
        parse_count,
    ),
    ServerSetting(
        "max_clients_per_host",
        "max-clients-per-host",
        "N",
        "maximum of connections of one host: an IPv4 address, or an IPv6 network of 64 bits;"
        " UNIX sockets don't count (default: three quarters of --max-clients, so that"
        " no host can take all)",
        (int,),
        parse_count,
    ),
    ServerSetting(
        "poll_seconds",
        "poll-us",
        "N",
        "microseconds to poll for the next request of a busy client before sleeping, 0 to"
        " 10000; 0 turns polling off (default: 200)",
        (float,),
        parse_poll,
        format_poll,
    ),
    _flag("allow_old_peers", _OLD_PEERS.name, _OLD_PEERS.help),
    ServerSetting(
        "metrics",
        "metrics",
        "PLACE",
        "offer metrics for Prometheus at http://PLACE/metrics: PORT (of 127.0.0.1), HOST:PORT, a"
        " path beginning with / (a UNIX socket), or any Twisted server endpoint; everybody who can"
        " connect there can read them (default: don't, and measure nothing)",
        (Address, str),
        parse_http_place,
    ),
    ServerSetting(
        "web",
        "web",
        "PLACE",
        "offer a page that shows the server and its migrations at http://PLACE/, given as"
        " for --metrics; it is read-only, and everybody who can connect there can see it (default:"
        " don't)",
        (Address, str),
        parse_http_place,
    ),
)
"""The settings of ``serve`` and ``listen``, in the order in which they are shown."""


def server_settings(command: str) -> tuple[ServerSetting, ...]:
    """Return the settings that *command* has: ``serve`` or ``listen``."""
    return tuple(each for each in SERVER_SETTINGS if each.is_of(command))
