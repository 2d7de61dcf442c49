"""Configurations of the commands that are not servers: one frozen class for each.

Those of the servers stand in `flexmigrate.config`, since the library takes them, too.
"""

from __future__ import annotations

from dataclasses import dataclass

from flexmigrate.config import _LOG, ListenConfig, ServeConfig
from flexmigrate.log.settings import LogSettings
from flexmigrate.migration.request import NO_TLS, TLSConfig
from flexmigrate.net.address import Address


@dataclass(frozen=True)
class CallConfig:
    """The configuration of every command that only talks to a running server.

    :ivar sock: path of the server's operator's socket.
    :ivar lines: the command, as the socket's grammar has it.
    """

    sock: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class StatusConfig:
    """The configuration of ``status``.

    :ivar sock: path of the server's operator's socket.
    :ivar lines: the command, as the socket's grammar has it.
    :ivar json: show it as a JSON object.
    :ivar watch: show it again whenever it has changed.
    """

    sock: str
    lines: tuple[str, ...]
    json: bool = False
    watch: bool = False


@dataclass(frozen=True)
class WaitConfig:
    """The configuration of ``wait`` and ``mirror --wait``.

    :ivar sock: path of the server's operator's socket.
    :ivar commands: what is asked for first, as the socket's grammar has it; perhaps nothing.
    :ivar export: whose migration is waited for; ``None`` where there is only one.
    """

    sock: str
    commands: tuple[tuple[str, ...], ...] = ()
    export: str | None = None


@dataclass(frozen=True)
class TransferConfig:
    """The configuration of ``read`` and ``write``.

    :ivar server: its address, or an NBD URI.
    :ivar offset: where in the export to begin, in bytes.
    :ivar size: how much to move, in bytes, at least 1.
    :ivar bind: local IP address to connect from; ``None`` leaves it to the kernel.
    :ivar tls: see `TLSConfig`.
    :ivar log: see `LogSettings`.
    """

    server: Address | str
    offset: int
    size: int
    bind: str | None = None
    tls: TLSConfig = NO_TLS
    log: LogSettings = _LOG
    subject = ""


class ReadConfig(TransferConfig):
    """The configuration of ``read``: the bytes go to standard output."""


class WriteConfig(TransferConfig):
    """The configuration of ``write``: the bytes come from standard input."""


@dataclass(frozen=True)
class WhoseConfig:
    """The configuration of ``whose``.

    :ivar file: path of the image that is asked about.
    :ivar peer_journal: path of a copy of the other side's journal.
    :ivar peer: address of the other side's server.
    :ivar remote_export: name of the export there.
    :ivar json: the answer is to be an object in JSON.
    :ivar tls: see `TLSConfig`.
    """

    file: str
    peer_journal: str | None = None
    peer: Address | None = None
    remote_export: str = ""
    json: bool = False
    tls: TLSConfig = NO_TLS
    verbosity: int = 0


@dataclass(frozen=True)
class SettleConfig:
    """The configuration of ``take`` and ``release``.

    :ivar file: path of the image.
    :ivar take: whether it is to be the image from now on; else, not to be it any more.
    :ivar sure: don't ask.
    """

    file: str
    take: bool
    sure: bool = False
    verbosity: int = 0


@dataclass(frozen=True)
class DoctorConfig:
    """The configuration of ``doctor``.

    :ivar server: what a server would be told, that is to be looked at; None: only this host.
    :ivar json: the findings are told as an object in JSON.
    """

    server: ServeConfig | ListenConfig | None = None
    json: bool = False


@dataclass(frozen=True)
class CompletionConfig:
    """The configuration of ``completion``.

    :ivar shell: whose script is wanted: "bash", "zsh" or "fish".
    """

    shell: str


# What a command line comes down to.
Config = (
    ServeConfig
    | ListenConfig
    | CallConfig
    | StatusConfig
    | WaitConfig
    | ReadConfig
    | WriteConfig
    | WhoseConfig
    | SettleConfig
    | DoctorConfig
    | CompletionConfig
)
