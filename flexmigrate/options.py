"""The options: how each is written, what its value may be, and what its help says.

One table serves ``flexmigrate`` and ``twistd flexmigrate``. What an option means together with
others is `flexmigrate.together`'s business. Twisted is not imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from flexmigrate.config import CoverageRule, Place, TLSRule
from flexmigrate.control.grammar import (
    MAX_BPS,
    MAX_CONNECTIONS,
    HandoverRule,
    VerifyRule,
    parse_converge_rule,
    parse_max_downtime,
    parse_max_park,
    parse_report,
    parse_seconds,
)
from flexmigrate.errors import UsageError
from flexmigrate.log.settings import FORMATS, LEVELS, LogFormat, shown_namespace
from flexmigrate.net.address import (
    Address,
    BadAddress,
    parse_host,
    parse_place,
    parse_port,
    parse_shown,
    parse_socket_path,
)

T = TypeVar("T")

# off_t has 64 bits with a sign: no image is longer.
MAX_OFFSET = 2**63 - 1
# Longer than a disk takes, looking is not polling any more but waiting.
MAX_POLL = 10000
_SUFFIXES = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Flag:
    """An option that is given or not."""

    long: str
    short: str
    help: str


@dataclass(frozen=True)
class Option(Generic[T]):
    """An option with a value.

    :ivar parse: makes the value of the word that was given; raises ``ValueError`` with a text that
        quotes it.
    :ivar repeatable: it may be given more than once; each time adds a value.
    """

    long: str
    short: str
    metavar: str
    help: str
    parse: Callable[[str], T]
    repeatable: bool = False


@dataclass(frozen=True)
class Words:
    """The words behind the options.

    :ivar count: how many there may be, as argparse has it.
    :ivar key: their name in a configuration file, where they can stand in one.
    """

    metavar: str
    help: str
    count: str | int
    key: str = ""


class Given:
    """What was given on one command line, as words: each error names its option.

    :param places: how to name those options that were given elsewhere: in a configuration file.
    """

    def __init__(self, values: Mapping[str, Any], places: Mapping[str, str] | None = None) -> None:
        self._values = values
        self._places = places or {}

    def name(self, option: Flag | Option[Any]) -> str:
        """Return what to call *option* in a message: ``--port``, or where its value stands."""
        return self._places.get(option.long, f"--{option.long}")

    @property
    def words(self) -> list[str]:
        """The words behind the options."""
        words = self._values.get("words") or ()
        return [words] if isinstance(words, str) else list(words)

    @property
    def words_name(self) -> str:
        """What to call these words in a message about one of an access list."""
        return self._places.get(ACL_WORDS.key, ACL_WORDS.metavar)

    @property
    def verbosity(self) -> int:
        """-1 after ``--quiet``, 1 after ``--verbose``; of both, the last one wins."""
        return int(self._values["verbosity"] or 0)

    def flag(self, flag: Flag) -> bool:
        """Return whether *flag* was given."""
        return bool(self._values[flag.long])

    def optional(self, option: Option[T]) -> T | None:
        """Return the value of *option*, or ``None`` if it was not given."""
        word = self._values[option.long]
        if word is None:
            return None
        try:
            return option.parse(word)
        except ValueError as error:
            raise UsageError(f"{self.name(option)}: {error}") from error

    def every(self, option: Option[T]) -> list[T]:
        """Return the values of *option*, which is repeatable, in the order they were given."""
        try:
            return [option.parse(word) for word in self._values[option.long] or ()]
        except ValueError as error:
            raise UsageError(f"{self.name(option)}: {error}") from error

    def required(self, option: Option[T], because: str = "") -> T:
        """Return the value of *option*, which has to be given (*because* of another one)."""
        value = self.optional(option)
        if value is None:
            raise UsageError(f"--{option.long} is required{because}")
        return value

    def refuse(self, option: Option[Any], because: str) -> None:
        """Raise if *option* was given."""
        given = self._values[option.long] or ()
        for word in given if option.repeatable else (given,):
            if word != ():
                raise UsageError(f"{self.name(option)} {word}: {because}")


def parse_bytes(text: str, lowest: int = 0, highest: int = MAX_OFFSET) -> int:
    """Return the number of bytes that *text* names: digits, and perhaps K, M, G or T (2 to the
    power of 10, 20, 30, 40).

    :raises ValueError: if it names none, or none from *lowest* to *highest*.
    """
    digits, factor = text, 1
    if text[-1:].upper() in _SUFFIXES:
        digits, factor = text[:-1], _SUFFIXES[text[-1:].upper()]
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError(f"{text!r} is not a number of bytes, like 4096, 64K or 1G")
    number = int(digits) * factor
    if not lowest <= number <= highest:
        raise ValueError(f"{text!r} is not from {lowest} to {highest}")
    return number


def _parse_size(text: str) -> int:
    return parse_bytes(text, lowest=1)


def _parse_bps(text: str) -> int:
    return parse_bytes(text, highest=MAX_BPS)


def _parse_remote_port(text: str) -> int:
    return parse_port(text, lowest=1)


def _parse_path(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError(f"{text!r} is not a path")
    return text


def _parse_export(text: str) -> str:
    from flexmigrate.wire.constants import MAX_STRING  # imported late: only servers need it

    if "\0" in text or len(text.encode("utf-8", "surrogateescape")) > MAX_STRING:
        raise ValueError(f"{text!r} is not a name of at most {MAX_STRING} bytes, none of them NUL")
    return text


def _parse_coverage(text: str) -> CoverageRule:
    rules: dict[str, CoverageRule] = {"full": "full", "any": "any"}
    if text not in rules:
        raise ValueError(f"{text!r} is neither 'full' nor 'any'")
    return rules[text]


def _parse_verify(text: str) -> VerifyRule:
    try:
        return VerifyRule(text)
    except ValueError:
        raise ValueError(f"{text!r} is none of 'full', 'dirty' and 'off'") from None


def _parse_handover(text: str) -> HandoverRule:
    try:
        return HandoverRule(text)
    except ValueError:
        raise ValueError(f"{text!r} is none of 'auto', 'session' and 'plain'") from None


def _parse_endpoint(text: str) -> str:
    kind, colon, _ = text.partition(":")
    if not colon or not kind.isalnum():
        raise ValueError(f"{text!r} is not a server endpoint, like tcp:10809 or unix:/run/nbd")
    return text


def _parse_http_place(text: str) -> Place:
    """Return where HTTP is served: a port alone is one of this host's own."""
    if text.isdigit():
        return Address.tcp("127.0.0.1", parse_port(text))
    if text.startswith("/"):
        return Address.unix(parse_socket_path(text))
    host, _, port = text.rpartition(":")
    try:
        parsed = parse_host(host.removeprefix("[").removesuffix("]"))
    except BadAddress:
        return _parse_endpoint(text)
    return Address.tcp(parsed, parse_port(port))


def _parse_count(text: str) -> int:
    return parse_bytes(text, lowest=1, highest=100000)


def _parse_connections(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_CONNECTIONS):
        raise ValueError(f"{text!r} is not a number of connections from 1 to {MAX_CONNECTIONS}")
    return int(text)


def _parse_microseconds(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= MAX_POLL):
        raise ValueError(f"{text!r} is not a number of microseconds from 0 to {MAX_POLL}")
    return int(text)


def _parse_log_format(text: str) -> LogFormat:
    for form in FORMATS:
        if text == form:
            return form
    raise ValueError(f"{text!r} is none of 'text', 'json' and 'flexnbd'")


def _parse_log_level(text: str) -> tuple[str, str]:
    namespace, equals, level = text.rpartition("=")
    if not equals or not namespace or level not in LEVELS:
        raise ValueError(f"{text!r} is not NAMESPACE=LEVEL with a level of {', '.join(LEVELS)}")
    return shown_namespace(namespace), level


def _parse_tls(text: str) -> TLSRule:
    rules: dict[str, TLSRule] = {"off": "off", "on": "on", "require": "require"}
    if text not in rules:
        raise ValueError(f"{text!r} is none of 'off', 'on' and 'require'")
    return rules[text]


METRICS = Option(
    "metrics",
    "",
    "PLACE",
    "offer metrics for Prometheus at http://PLACE/metrics: PORT (of 127.0.0.1), HOST:PORT, a path"
    " beginning with / (a UNIX socket), or any Twisted server endpoint; whoever can connect there"
    " can read them (default: don't, and measure nothing)",
    _parse_http_place,
)

WEB = Option(
    "web",
    "",
    "PLACE",
    "offer a page that shows what goes on, a migration above all, at http://PLACE/, given as for"
    " --metrics; it can change nothing, and whoever can connect there can see it (default: don't)",
    _parse_http_place,
)

VERBOSE = Flag("verbose", "v", "log everything")
QUIET = Flag("quiet", "q", "log errors only; of -v and -q, the last one wins")

LOG_FORMAT = Option(
    "log-format",
    "",
    "text|json|flexnbd",
    "layout of the log's lines (default: text)",
    _parse_log_format,
)
LOG_LEVEL = Option(
    "log-level",
    "",
    "NAMESPACE=LEVEL",
    "lowest level to log of a part of the program, named as in the log: migration=debug,"
    " twisted=info; debug, info, warn, error or critical; can be repeated, and comes before -v and"
    " -q (default: info for all of flexmigrate, warn for what it uses)",
    _parse_log_level,
    repeatable=True,
)
LOG_REQUESTS = Flag(
    "log-requests",
    "",
    "log every request and reply of every client: for looking into a fault, since it makes a"
    " server several times slower (default: none)",
)

CONFIG = Option(
    "config",
    "",
    "FILE",
    "a TOML file with options, by their long names; the command line comes before it"
    " (default: none)",
    _parse_path,
)

LISTEN_ADDR = Option(
    "addr",
    "l",
    "ADDR",
    "where to listen: an IPv4 or IPv6 address, or a path beginning with / (a UNIX socket, which"
    " has no port)",
    parse_place,
)
LISTEN_PORT = Option("port", "p", "PORT", "TCP port to listen on; 0 takes a free one", parse_port)
REMOTE_ADDR = Option(
    "addr",
    "l",
    "ADDR",
    "where the other server listens: an IPv4 or IPv6 address, or a path beginning with / (a UNIX"
    " socket, which has no port)",
    parse_place,
)
REMOTE_PORT = Option("port", "p", "PORT", "TCP port of the other server", _parse_remote_port)
BIND = Option(
    "bind",
    "b",
    "ADDR",
    "local IP address to connect from (default: the kernel chooses)",
    parse_host,
)
FILE = Option(
    "file", "f", "FILE", "the image: a file or a block device, which must exist", _parse_path
)
OPEN_SOCK = Option(
    "sock",
    "s",
    "SOCK",
    "path of a UNIX socket to open for the operator, mode 0600 (default: none)",
    parse_socket_path,
)
CALL_SOCK = Option(
    "sock", "s", "SOCK", "path of the running server's operator's socket", parse_socket_path
)
DEFAULT_DENY = Flag(
    "default-deny", "d", "an empty access list lets nobody in (default: it lets everybody in)"
)
KILLSWITCH = Flag(
    "killswitch",
    "k",
    "close the connection of a client whose request is not complete after 120 s (default: wait)",
)
OLDSTYLE = Flag("oldstyle", "", "speak flexnbd's oldstyle handshake (default: fixed newstyle)")
EXPORTS = Option(
    "export",
    "",
    "NAME[=FILE]",
    "offer the image FILE under NAME, at most 4096 bytes; can be repeated. Without =FILE, the name"
    ' under which --file is offered (default: "", the default export)',
    _parse_export,
    repeatable=True,
)
DEFAULT_EXPORT = Option(
    "default-export",
    "",
    "NAME",
    "the export that clients get who name none (default: the first)",
    _parse_export,
)
EXPORT = Option(
    "export", "", "NAME", "which of the server's exports (default: the only one)", _parse_export
)
LISTEN_EXPORT = Option(
    "export",
    "",
    "NAME",
    "name under which the image is received, and then served; who names none gets it, too"
    ' (default: "")',
    _parse_export,
)
STATUS_EXPORT = Option(
    "export", "", "NAME", "which of the server's exports (default: the default one)", _parse_export
)
REMOTE_EXPORT = Option(
    "remote-export",
    "",
    "NAME",
    'name of the export at the destination (default: "", its default export)',
    _parse_export,
)
CONNECTIONS = Option(
    "connections",
    "",
    "N",
    "connections to use, 1 to 16, where the destination takes several (default: 4)",
    _parse_connections,
)
DROP_CACHE = Flag(
    "drop-cache",
    "",
    "drop from the source's page cache what was sent, so that a large image doesn't push out what"
    " others use (default: keep it)",
)
NO_LIST = Flag("no-list", "", "don't tell clients the names of the exports (default: tell)")
ENDPOINT = Option(
    "endpoint",
    "",
    "DESCRIPTION",
    "listen there, too: any Twisted server endpoint, such as tcp:10809, unix:/run/nbd or"
    " systemd:domain=INET:index=0; can be repeated. With it, --addr can be left out (default:"
    " listen at --addr only)",
    _parse_endpoint,
    repeatable=True,
)
MAX_CLIENTS = Option(
    "max-clients",
    "",
    "N",
    "connections at the same time, 1 to 100000 (default: 1000)",
    _parse_count,
)
POLL = Option(
    "poll-us",
    "",
    "N",
    "microseconds for which to look for the next request of a busy client before sleeping, 0 to"
    " 10000; 0 turns it off (default: 200)",
    _parse_microseconds,
)
TLS = Option(
    "tls",
    "",
    "off|on|require",
    "whether connections are encrypted: never, if the other side asks for it, or always"
    " (default: off)",
    _parse_tls,
)
TLS_CERTIFICATES = Option(
    "tls-certificates",
    "",
    "DIR",
    "folder with ca-cert.pem, and server-cert.pem and server-key.pem, or client-cert.pem and"
    " client-key.pem (default: none, and so no TLS)",
    _parse_path,
)
TLS_VERIFY_PEER = Flag(
    "tls-verify-peer",
    "",
    "let in only clients with a certificate signed by ca-cert.pem (default: all)",
)
TLS_HOSTNAME = Option(
    "tls-hostname",
    "",
    "NAME",
    "name that the other server's certificate must have (default: the address connected to)",
    _parse_path,
)
READ_ONLY = Flag("read-only", "", "offer the image for reading only (default: for writing, too)")
REBIND_ADDR = Option(
    "rebind-addr",
    "",
    "ADDR",
    "serve the image here once it has come, and go on running (default: that of --addr if"
    " --rebind-port is given; with neither, exit)",
    parse_place,
)
REBIND_PORT = Option(
    "rebind-port",
    "",
    "PORT",
    "TCP port to serve on then (default: that of --port if --rebind-addr is given)",
    _parse_remote_port,
)
COVERAGE = Option(
    "coverage",
    "",
    "full|any",
    "how much a sender must have written, zeroed or trimmed for the migration to count: every byte,"
    " or anything (default: full)",
    _parse_coverage,
)
PEER_JOURNAL = Option(
    "peer-journal",
    "",
    "FILE",
    "a copy of the other side's journal, its IMAGE.handover (default: judge by our own)",
    _parse_path,
)
PEER = Option(
    "peer",
    "",
    "HOST:PORT",
    "ask the other side's server: its IPv4 address or [IPv6 address] and port, or the path of its"
    " UNIX socket (default: judge by our own journal)",
    parse_shown,
)
JSON = Flag("json", "", "answer with an object in JSON (default: text for people)")
YES = Flag("yes", "y", "don't ask whether it is meant (default: ask)")
IMAGE_WORD = Words("IMAGE", "path of the image", 1)
UNLINK = Flag(
    "unlink",
    "u",
    "delete the source's image once it is complete at the destination (default: keep it)",
)
REPORT = Option(
    "report",
    "",
    "FILE",
    "have the server write a report of the migration when it is over: FILE.html, a page with a"
    " plot, or FILE.json (default: none)",
    parse_report,
)
WAIT = Flag(
    "wait",
    "",
    "wait for the migration's end, show its progress, and exit with 0 if it succeeded, 1 if not, 3"
    " if that isn't known (default: exit when it has begun)",
)
STATUS_JSON = Flag("json", "", "print a JSON object (default: key=value pairs)")
WATCH = Flag("watch", "", "go on, and show each change, once a second (default: show it once)")
LIMIT = Option(
    "max-bps",
    "m",
    "N",
    "send at most N bytes per second; K, M, G and T are powers of 1024 (default: 0, no limit)",
    _parse_bps,
)
CONVERGE = Option(
    "converge",
    "",
    "throttle|wait|force",
    "what to do about clients that write faster than can be sent: slow them down step by step until"
    " it ends, wait until they write less (for ever, if they don't), or wait for --converge-timeout"
    " and then see to it that it ends (default: throttle)",
    parse_converge_rule,
)
CONVERGE_TIMEOUT = Option(
    "converge-timeout",
    "",
    "TIME",
    "with --converge force: so long after the first pass, clients may be parked for half of"
    " --max-park, and are slowed down until that is enough (default: 60s)",
    parse_seconds,
)
MAX_DOWNTIME = Option(
    "max-downtime",
    "",
    "TIME",
    "park clients once the rest can be sent, and the destination be settled with, in TIME, as far"
    " as that can be estimated; like 100ms, 2.5s or 1min, without a unit seconds (default: 100ms)",
    parse_max_downtime,
)
MAX_PARK = Option(
    "max-park",
    "",
    "TIME",
    "let parked clients go, and try again, if it takes longer than TIME, at least 100ms (default:"
    " 10s)",
    parse_max_park,
)
HANDOVER = Option(
    "handover",
    "",
    "auto|session|plain",
    "how to settle who owns the image: by a session with a journal at each end, which the other"
    " server has to know, plainly as every NBD server understands it, or whichever it can"
    " (default: auto)",
    _parse_handover,
)
VERIFY = Option(
    "verify",
    "",
    "full|dirty|off",
    "what to compare with the destination, by digests, before it is handed over by a session: all,"
    " what clients have changed since it was first sent, or nothing (default: full)",
    _parse_verify,
)
FROM = Option(
    "from",
    "F",
    "OFFSET",
    "where to begin, in bytes from the start of the export; K, M, G and T are powers of 1024",
    parse_bytes,
)
SIZE = Option(
    "size", "S", "N", "how many bytes, at least 1; K, M, G and T are powers of 1024", _parse_size
)
ACL_WORDS = Words(
    "ACL_ENTRY",
    "addresses and networks that may connect: 10.0.0.1, 10.0.0.0/8, 2001:db8::/32",
    "*",
    "acl",
)
URI_WORD = Words(
    "URI",
    "where the export is, instead of --addr and --port: nbd://HOST[:PORT]/EXPORT or"
    " nbd+unix:///EXPORT?socket=PATH; nbds and nbds+unix require TLS",
    "?",
)
CONVERGE_WORD = Words(
    "throttle|wait|force",
    "as mirror's --converge; force acts after --converge-timeout from now (default: at once)",
    "?",
)
SERVER_WORDS = Words(
    "COMMAND",
    "serve or listen, with the options that it is to be started with: what they need is looked at,"
    " too",
    "...",
)
SHELL_WORD = Words("bash|zsh|fish", "the shell", 1)
LIMIT_WORD = Words("N", "bytes per second; K, M, G and T are powers of 1024; 0 lifts the limit", 1)
