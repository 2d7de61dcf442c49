"""Every error that flexmigrate raises on purpose, in one tree: who is to blame, and what to tell
them.

Anything that escapes and is not in this tree (nor an ``OSError`` of the image) is a bug.
"""

from __future__ import annotations

import errno


class FlexmigrateError(Exception):
    """The root: its text is one sentence, fit to be shown to an operator."""


class UsageError(FlexmigrateError):
    """The command line or the configuration is wrong (exit status 2); the text names the option."""


class CommandError(FlexmigrateError):
    """A command on the operator's socket can't be carried out; the text is the answer."""


class ImageError(FlexmigrateError):
    """The image can't be opened, locked or used; the text names its path and the cause."""


class ProtocolError(FlexmigrateError):
    """A rule of the NBD protocol was broken."""


class LocalProtocolError(ProtocolError):
    """We, or the program that calls us, asked for something that the protocol does not allow."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something that the protocol does not allow; its connection is ended."""


class SessionDeclined(FlexmigrateError):
    """The other flexmigrate understands what we want, and declines it; the text has its reason."""


class ConnectFailed(FlexmigrateError):
    """No connection could be made to a server."""


class Rejected(FlexmigrateError):
    """The server accepted the connection and closed it before it said hello."""


class TLSFailed(FlexmigrateError):
    """TLS could not be agreed on: a certificate, or what one side insists on, was not accepted."""


class NoHello(FlexmigrateError):
    """The server accepted the connection and did not say hello in time."""


class ConnectionGone(FlexmigrateError):
    """The connection ended while requests were under way, or before it was asked for something."""


class RequestFailed(FlexmigrateError):
    """The server answered one request with an error; the connection goes on.

    :ivar errno: the error number as the NBD specification has it ("Error values"), equal to
        Linux's.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.errno = number


class MigrationError(FlexmigrateError):
    """An attempt, or a whole migration, failed; the text says why."""


class ImageLost(MigrationError):
    """The image has lost its name, or bytes: no further attempt can mend that."""


class Broken(MigrationError):
    """The operator (``break``) or a signal ended the migration."""


def in_words(error: BaseException) -> str:
    """Return what an operator should read of *error*: of one of the system's, what it is about and
    why, without its number.
    """
    if not isinstance(error, OSError) or not error.strerror:
        return str(error) or type(error).__name__
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


# What a client may be told: proto.md, "Error values". Everything else is narrowed to EIO, and the
# operator sees the real error in the log.
_TELLABLE = frozenset(
    {
        errno.EPERM,
        errno.EIO,
        errno.ENOMEM,
        errno.EINVAL,
        errno.ENOSPC,
        errno.EOVERFLOW,
        errno.ENOTSUP,
        errno.ESHUTDOWN,
    }
)
_NARROWED = {
    errno.EROFS: errno.EPERM,
    errno.EACCES: errno.EPERM,
    errno.EDQUOT: errno.ENOSPC,
    errno.EFBIG: errno.ENOSPC,
}


def to_nbd(error: BaseException) -> int:
    """Return the error number that a client is told about *error* (proto.md, "Error values")."""
    number = getattr(error, "errno", None)
    if isinstance(error, MemoryError):
        number = errno.ENOMEM
    if number in _TELLABLE:
        return int(number)
    return _NARROWED.get(number, errno.EIO) if number is not None else errno.EIO
