"""The numbers of the NBD protocol, under the specification's own names, and the limits we set.

Each enum is one table of proto.md ("Values"), its members named as there without the common prefix:
``NBD_CMD_READ`` is ``Command.READ``. Numbers marked "extension" are those of the EXTENDED_HEADERS
branch of the specification.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

# Magic numbers ("Protocol phases"): 64 bits each in the handshake, 32 bits in transmission.
INIT_MAGIC = 0x4E42444D41474943  # ASCII "NBDMAGIC": the first 8 bytes of every server
OPTION_MAGIC = 0x49484156454F5054  # ASCII "IHAVEOPT": newstyle greeting, and before each option
OLDSTYLE_MAGIC = 0x0000420281861253  # where a newstyle server has OPTION_MAGIC
OPTION_REPLY_MAGIC = 0x0003E889045565A9
REQUEST_MAGIC = 0x25609513
EXTENDED_REQUEST_MAGIC = 0x21E41C71  # extension
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF
EXTENDED_REPLY_MAGIC = 0x6E8A278C  # extension


class HandshakeFlag(IntFlag):
    """Flags of a newstyle server's greeting (16 bits)."""

    FIXED_NEWSTYLE = 1 << 0
    NO_ZEROES = 1 << 1


class ClientFlag(IntFlag):
    """The client's answer to the greeting (32 bits)."""

    FIXED_NEWSTYLE = 1 << 0
    NO_ZEROES = 1 << 1


class TransmissionFlag(IntFlag):
    """Features of an export (16 bits). A client uses nothing that was not advertised."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    ROTATIONAL = 1 << 4
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_RESIZE = 1 << 9
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11
    BLOCK_STATUS_PAYLOAD = 1 << 12  # extension


class Option(IntEnum):
    """Options that a client may ask for while haggling (32 bits)."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    PEEK_EXPORT = 4  # withdrawn from the specification; its number stays taken
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10
    EXTENDED_HEADERS = 11  # extension


OPTION_ERROR_BIT = 1 << 31
"""Set in every option reply type that is an error, known or not."""


class OptionReply(IntEnum):
    """A server's answer to an option (32 bits); ACK and the errors are final."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = OPTION_ERROR_BIT + 1
    ERR_POLICY = OPTION_ERROR_BIT + 2
    ERR_INVALID = OPTION_ERROR_BIT + 3
    ERR_PLATFORM = OPTION_ERROR_BIT + 4
    ERR_TLS_REQD = OPTION_ERROR_BIT + 5
    ERR_UNKNOWN = OPTION_ERROR_BIT + 6
    ERR_SHUTDOWN = OPTION_ERROR_BIT + 7
    ERR_BLOCK_SIZE_REQD = OPTION_ERROR_BIT + 8
    ERR_TOO_BIG = OPTION_ERROR_BIT + 9
    ERR_EXT_HEADER_REQD = OPTION_ERROR_BIT + 10  # extension


class ServerRole(IntEnum):
    """The state of a server, in its oldstyle greeting (32 bits)."""

    UNKNOWN = 0  # nothing
    SERVING = 1  # it serves an image, and waits for no migration
    RECEIVING = 2  # it waits for a migration, which replaces all that it has


class Info(IntEnum):
    """Kinds of INFO replies on an export (16 bits)."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class Command(IntEnum):
    """The type of a request (16 bits)."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7
    RESIZE = 8


class CommandFlag(IntFlag):
    """Modifiers of a request (16 bits)."""

    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2
    REQ_ONE = 1 << 3
    FAST_ZERO = 1 << 4
    PAYLOAD_LEN = 1 << 5  # extension


CHUNK_ERROR_BIT = 1 << 15
"""Set in every chunk type that is an error, known or not."""


class Chunk(IntEnum):
    """The type of a structured or extended reply chunk (16 bits; ``NBD_REPLY_TYPE_*``)."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    BLOCK_STATUS_EXT = 6  # extension
    ERROR = CHUNK_ERROR_BIT + 1
    ERROR_OFFSET = CHUNK_ERROR_BIT + 2


class ChunkFlag(IntFlag):
    """Modifiers of a reply chunk (16 bits; ``NBD_REPLY_FLAG_*``)."""

    DONE = 1 << 0


class ErrorCode(IntEnum):
    """The error numbers of the protocol. The specification fixes them, not the platform."""

    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108


ERROR_TEXTS = {
    ErrorCode.EPERM: "Operation not permitted",
    ErrorCode.EIO: "Input/output error",
    ErrorCode.ENOMEM: "Cannot allocate memory",
    ErrorCode.EINVAL: "Invalid argument",
    ErrorCode.ENOSPC: "No space left on device",
    ErrorCode.EOVERFLOW: "Value too large for defined data type",
    ErrorCode.ENOTSUP: "Operation not supported",
    ErrorCode.ESHUTDOWN: "the server is shutting down",
}
"""Each error in words, as systems have them."""


class AllocationFlag(IntFlag):
    """The status of an extent in the context ``base:allocation`` (``NBD_STATE_*``)."""

    HOLE = 1 << 0
    ZERO = 1 << 1


BASE_ALLOCATION = "base:allocation"
"""The one metadata context that the specification itself defines."""

DEFAULT_PORT = 10809
"""The TCP port that IANA has registered for NBD."""

MAX_EXPORT_SIZE = 2**63 - 1
"""Bytes; no system call takes offsets beyond it."""

SECTOR = 512
"""Bytes. The oldstyle handshake gives the size in whole sectors, rounded down, as flexnbd does. The
kernel's client and some other servers round to sectors, too."""

MAX_STRING = 4096
"""Bytes of UTF-8 in any name, description or message (proto.md, "Conventions")."""

MAX_PAYLOAD = 32 * 1024 * 1024
"""Bytes of payload in one request that every server is expected to accept, and that clients assume
if the server advertises nothing ("Size constraints"). So we advertise it, and our client never
exceeds it."""

MAX_REQUEST = 64 * 1024 * 1024
"""Bytes of payload in one request that the server accepts beyond what it advertises, as nbdkit
does: the most that libnbd ever sends. Such a request is carried out piece by piece."""

DEFAULT_MIN_BLOCK = 1
"""Bytes; the block sizes that hold where a server advertises none ("Size constraints")."""

DEFAULT_PREFERRED_BLOCK = 4096
"""Bytes; see DEFAULT_MIN_BLOCK."""

MAX_MIN_BLOCK = 64 * 1024
"""Bytes; no server may insist on larger blocks ("Size constraints")."""

MAX_OPTION_LENGTH = 2 * MAX_STRING + 512
"""Bytes of option data that the server holds in memory, for each client that is slow to send it.
Real options have less than 200. This is room for an export's name with 2,000 details (INFO, GO), or
with a metadata query, all of the longest allowed."""

MAX_DRAINED_OPTION = 1024 * 1024
"""Bytes of a too large option that the server reads and discards, so that it can answer with an
error. A client that announces more isn't negotiating, and is disconnected."""

MAX_OPTIONS = 1024
"""Options on one connection. ``qemu-nbd --list`` asks for two per export, so this is far above what
a real client needs, and stops one that haggles forever."""

MAX_QUERIES = 64
"""Metadata queries in one option. A server has few contexts, so more queries would only be work."""

MAX_ANSWERS = 8 * 1024 * 1024
"""Bytes of option replies that the server makes for one connection. A client can send options
without waiting for answers, and 16 bytes of LIST have a long one. So this limit bounds the memory
that a negotiation can take."""

MAX_OPTION_REPLY = 16 * 1024
"""Bytes of one option reply that the client takes. The longest regular one is an export's name and
its description, 4 + 2 * MAX_STRING."""

MAX_OPTION_REPLIES = 1024 * 1024
"""Bytes of all replies to one option that the client accepts, headers included: a LIST of some ten
thousand exports. Without a limit a server could reply forever."""


def name_of(enum: type[IntEnum] | type[IntFlag], value: int) -> str:
    """Return the specification's name of *value* for a log line; never raises.

    Unknown numbers read ``Command 77 (unknown)``; flags are joined as in ``FUA|DF``, unknown bits
    last, as in ``FUA|0x40 (unknown)``; no flag at all is ``none``.
    """
    if issubclass(enum, IntFlag):
        return _names_of_flags(enum, value)
    for member in enum:
        if member.value == value:
            return member.name
    return f"{enum.__name__} {value} (unknown)"


def _names_of_flags(enum: type[IntFlag], value: int) -> str:
    names = [member.name or "" for member in enum if value & member.value]
    known = sum(member.value for member in enum)
    if value & ~known:
        names.append(f"{value & ~known:#x} (unknown)")
    return "|".join(names) or "none"
