"""What a command was told, checked and frozen: all that the rooms below know of a command line.

A library that embeds flexmigrate makes the same values itself. Nothing is checked here: what makes
them sound is `flexmigrate.commands`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flexmigrate.net.address import Address

CoverageRule = Literal["full", "any"]


@dataclass(frozen=True)
class ServeConfig:
    """What ``serve`` was told.

    :ivar address: where clients connect to; port 0 takes a free one.
    :ivar file: path of the image, a file or a block device.
    :ivar sock: path of the operator's socket, if there is to be one.
    :ivar acl: entries of the access list, all of them sound.
    :ivar default_deny: an empty access list lets nobody in, instead of everybody.
    :ivar killswitch: a request that takes longer than 120 s costs the client its connection.
    :ivar oldstyle: the handshake is the oldstyle one, which has no export names.
    :ivar export: name under which the image is offered; empty for the default export.
    :ivar read_only: the image is opened for reading, and offered so.
    :ivar verbosity: -1 quiet, 0 normal, 1 verbose.
    """

    address: Address
    file: str
    sock: str | None = None
    acl: tuple[str, ...] = ()
    default_deny: bool = False
    killswitch: bool = False
    oldstyle: bool = False
    export: str = ""
    read_only: bool = False
    verbosity: int = 0


@dataclass(frozen=True)
class ListenConfig:
    """What ``listen`` was told; what `ServeConfig` has, too, means the same.

    :ivar address: where the source connects to.
    :ivar rebind: where to serve after the migration; ``None`` to exit instead.
    :ivar coverage: what a sender must have written before it can give the image away: every byte
        ("full"), or something ("any").
    """

    address: Address
    file: str
    sock: str | None = None
    acl: tuple[str, ...] = ()
    default_deny: bool = False
    oldstyle: bool = False
    rebind: Address | None = None
    coverage: CoverageRule = "full"
    verbosity: int = 0


@dataclass(frozen=True)
class CallConfig:
    """What all commands come down to that only talk to a running server.

    :ivar sock: path of the server's operator's socket.
    :ivar lines: the command, as the socket's grammar has it.
    """

    sock: str
    lines: tuple[str, ...]
    verbosity: int = 0


@dataclass(frozen=True)
class TransferConfig:
    """What ``read`` and ``write`` were told.

    :ivar address: of the server.
    :ivar offset: where in the export to begin, in bytes.
    :ivar size: how much to move, in bytes, at least 1.
    :ivar bind: local IP address to connect from; ``None`` leaves it to the kernel.
    """

    address: Address
    offset: int
    size: int
    bind: str | None = None
    verbosity: int = 0


class ReadConfig(TransferConfig):
    """What ``read`` was told: the bytes go to standard output."""


class WriteConfig(TransferConfig):
    """What ``write`` was told: the bytes come from standard input."""


# What a command line comes down to.
Config = ServeConfig | ListenConfig | CallConfig | ReadConfig | WriteConfig
