"""The options: their names, metavars, parsers and help.

One table serves ``flexmigrate`` and ``twistd flexmigrate``. What an option means together with
others is defined in `flexmigrate.cli.combined`. Twisted is not imported.
"""

from __future__ import annotations

from typing import Any

from flexmigrate.cli.option import Flag, ValueOption, Words
from flexmigrate.cli.values import (
    parse_bps,
    parse_bytes,
    parse_log_format,
    parse_log_level,
    parse_remote_port,
    parse_size,
)
from flexmigrate.migration.request import (
    SETTINGS,
    Setting,
    parse_name,
    parse_path,
)
from flexmigrate.net.address import (
    parse_host,
    parse_place,
    parse_port,
    parse_shown,
    parse_socket_path,
)
from flexmigrate.settings import ServerSetting, parse_endpoint, server_settings


def _option_of(setting: Setting) -> Flag | ValueOption[Any]:
    if not setting.metavar:
        return Flag(setting.name, "", setting.help)
    return ValueOption(setting.name, "", setting.metavar, setting.help, setting.parse)


SETTING_OPTIONS: dict[str, Flag | ValueOption[Any]] = {
    each.field: _option_of(each) for each in SETTINGS
}
"""The options of ``mirror`` that are settings, by their field."""


def _option(field: str) -> ValueOption[Any]:
    """Return the option of a setting that other commands have, too."""
    option = SETTING_OPTIONS[field]
    assert isinstance(option, ValueOption)
    return option


def _server_option_of(setting: ServerSetting, command: str) -> Flag | ValueOption[Any]:
    meaning = setting.help_of(command)
    if not setting.metavar:
        return Flag(setting.name, setting.short, meaning)
    return ValueOption(setting.name, setting.short, setting.metavar, meaning, setting.parse)


SERVER_OPTIONS: dict[str, dict[str, Flag | ValueOption[Any]]] = {
    command: {each.field: _server_option_of(each, command) for each in server_settings(command)}
    for command in ("serve", "listen")
}
"""The options of ``serve`` and ``listen`` that are settings, by their field."""

VERBOSE = Flag("verbose", "v", "log everything")
QUIET = Flag("quiet", "q", "log errors only; of -v and -q, the last one wins")

LOG_FORMAT = ValueOption(
    "log-format",
    "",
    "text|json|flexnbd",
    "layout of the log's lines (default: text)",
    parse_log_format,
)
LOG_LEVEL = ValueOption(
    "log-level",
    "",
    "NAMESPACE=LEVEL",
    "lowest level to log of a part of the program, named as in the log: migration=debug,"
    " twisted=info; debug, info, warn, error or critical; can be repeated, and comes before -v and"
    " -q (default: info for all of flexmigrate, warn for what it uses)",
    parse_log_level,
    repeatable=True,
)
LOG_REQUESTS = Flag(
    "log-requests",
    "",
    "log every request and reply of every client: only to look into a fault, since it makes a"
    " server several times slower (default: off)",
)

CONFIG = ValueOption(
    "config",
    "",
    "FILE",
    "a TOML file with options, by their long names; the command line takes precedence"
    " (default: none)",
    parse_path,
)

LISTEN_ADDR = ValueOption(
    "addr",
    "l",
    "ADDR",
    "address to listen on: IPv4 or IPv6, or a path beginning with / (a UNIX socket, which"
    " has no port)",
    parse_place,
)
LISTEN_PORT = ValueOption(
    "port", "p", "PORT", "TCP port to listen on; 0 takes a free one", parse_port
)
REMOTE_ADDR = ValueOption(
    "addr",
    "l",
    "ADDR",
    "address of the other server: an IPv4 or IPv6 address, or a path beginning with / (a UNIX"
    " socket, which has no port)",
    parse_place,
)
REMOTE_PORT = ValueOption("port", "p", "PORT", "TCP port of the other server", parse_remote_port)
BIND = ValueOption(
    "bind",
    "b",
    "ADDR",
    "local IP address to connect from (default: the kernel chooses)",
    parse_host,
)
FILE = ValueOption(
    "file", "f", "FILE", "the image: a file or a block device, which must exist", parse_path
)
CALL_SOCK = ValueOption(
    "sock", "s", "SOCK", "path of the running server's operator's socket", parse_socket_path
)
EXPORTS = ValueOption(
    "export",
    "",
    "NAME[=FILE]",
    "offer the image FILE under NAME, at most 4096 bytes; can be repeated. Without =FILE, the name"
    ' under which --file is offered (default: "", the default export)',
    parse_name,
    repeatable=True,
)
EXPORT = _option("export")
STATUS_EXPORT = ValueOption(
    "export", "", "NAME", "which of the server's exports (default: the default one)", parse_name
)
REMOTE_EXPORT = _option("remote_export")
ENDPOINT = ValueOption(
    "endpoint",
    "",
    "DESCRIPTION",
    "another place to listen on: any Twisted server endpoint, such as tcp:10809, unix:/run/nbd or"
    " systemd:domain=INET:index=0; can be repeated. With it, --addr can be left out (default:"
    " listen at --addr only)",
    parse_endpoint,
    repeatable=True,
)
TLS = _option("tls.rule")
TLS_CERTIFICATES = _option("tls.certificates")
TLS_VERIFY_PEER = Flag(
    "tls-verify-peer",
    "",
    "admit only clients with a certificate signed by ca-cert.pem; needs --tls require (default:"
    " all)",
)
TLS_HOSTNAME = _option("tls.hostname")
REBIND_ADDR = ValueOption(
    "rebind-addr",
    "",
    "ADDR",
    "address to serve the image at once it has come (default: that of --addr if"
    " --rebind-port is given; with neither, exit)",
    parse_place,
)
REBIND_PORT = ValueOption(
    "rebind-port",
    "",
    "PORT",
    "TCP port to serve on then (default: that of --port if --rebind-addr is given)",
    parse_remote_port,
)
PEER_JOURNAL = ValueOption(
    "peer-journal",
    "",
    "FILE",
    "a copy of the other side's journal, its IMAGE.handover (default: judge by our own)",
    parse_path,
)
PEER = ValueOption(
    "peer",
    "",
    "HOST:PORT",
    "ask the other side's server: its IPv4 address or [IPv6 address] and port, or the path of its"
    " UNIX socket (default: judge by our own journal)",
    parse_shown,
)
JSON = Flag("json", "", "print a JSON object (default: text for people)")
YES = Flag("yes", "y", "don't ask for confirmation (default: ask)")
IMAGE_WORD = Words("IMAGE", "path of the image", 1)
UNLINK = Flag(
    "unlink",
    "u",
    "delete the source's image once it is complete at the destination (default: keep it)",
)
WAIT = Flag(
    "wait",
    "",
    "wait for the migration's end, show its progress, and exit with 0 if it succeeded, 1 if not, 3"
    " if that isn't known (default: exit when it has begun)",
)
STATUS_JSON = Flag("json", "", "print a JSON object (default: key=value pairs)")
WATCH = Flag("watch", "", "go on and show changes, once a second (default: show the status once)")
LIMIT = ValueOption(
    "max-bps",
    "m",
    "N",
    "send at most N bytes per second; K, M, G and T are powers of 1024 (default: 0, no limit)",
    parse_bps,
)
CONVERGE = _option("converge.rule")
CONVERGE_TIMEOUT = _option("converge.timeout")
MAX_DOWNTIME = _option("converge.max_downtime")
MAX_PARK = _option("converge.max_park")
FROM = ValueOption(
    "from",
    "F",
    "OFFSET",
    "offset in the export to begin at, in bytes; K, M, G and T are powers of 1024",
    parse_bytes,
)
SIZE = ValueOption(
    "size", "S", "N", "number of bytes, at least 1; K, M, G and T are powers of 1024", parse_size
)
ACL_WORDS = Words(
    "ACL_ENTRY",
    "addresses and networks that may connect: 10.0.0.1, 10.0.0.0/8, 2001:db8::/32",
    "*",
    "acl",
)
URI_WORD = Words(
    "URI",
    "URI of the export, instead of --addr and --port: nbd://HOST[:PORT]/EXPORT or"
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
    "serve or listen, with the options that it is to be started with: what they need is checked,"
    " too",
    "...",
)
SHELL_WORD = Words("bash|zsh|fish", "the shell", 1)
LIMIT_WORD = Words("N", "bytes per second; K, M, G and T are powers of 1024; 0 lifts the limit", 1)
