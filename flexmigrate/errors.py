"""All errors that flexmigrate raises on purpose, in one tree, by who is at fault, with messages for
operators.

Any other error that escapes (except for an ``OSError`` of the image) is a bug.
"""

from __future__ import annotations

import errno


class FlexmigrateError(Exception):
    """The base of all errors. Its text is one sentence, fit to be shown to an operator."""


class UsageError(FlexmigrateError, ValueError):
    """The command line, the configuration, or an argument of the library is wrong (exit status 2);
    the text names the option or the argument, and tells the value and what is allowed.
    """


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
    """The other flexmigrate understands the request, and declines it; the text has its reason."""


class ConnectFailed(FlexmigrateError):
    """No connection could be made to a server."""


class Rejected(FlexmigrateError):
    """The server accepted the connection, and closed it before its greeting."""


class TLSFailed(FlexmigrateError):
    """TLS could not be established: one side didn't accept a certificate or a requirement."""


class NoHello(FlexmigrateError):
    """The server accepted the connection, and did not complete the negotiation in time."""


class ConnectionGone(FlexmigrateError):
    """The connection ended while requests were in flight, or before a request was made."""


class RequestFailed(FlexmigrateError):
    """The server answered one request with an error; the connection goes on.

    :ivar errno: the error number as the NBD specification has it ("Error values"), equal to
        Linux's.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.errno = number


class MigrationError(FlexmigrateError):
    """An attempt, or a whole migration, failed; the text has the reason."""


class ImageLost(MigrationError):
    """The image has lost its name, or bytes; another attempt would be of no use."""


class Broken(MigrationError):
    """The operator (``break``) or a signal ended the migration."""


_KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}


def check_type(name: str, value: object, *kinds: type) -> None:
    """See that *value* is of one of the *kinds*; a float may be an int, and True is no number.

    :param name: of the field or argument.
    :raises UsageError: it isn't.
    """
    fits = isinstance(value, kinds) or (float in kinds and isinstance(value, int))
    if not fits or (isinstance(value, bool) and bool not in kinds):
        words = " or ".join(
            "None" if kind is type(None) else _KINDS.get(kind, kind.__name__) for kind in kinds
        )
        raise UsageError(f"{name}={value!r}: it must be {words}")


def in_words(error: BaseException) -> str:
    """Return the text of *error* for an operator; for an error of the system its subject and
    reason, without its number.
    """
    if not isinstance(error, OSError) or not error.strerror:
        return str(error) or type(error).__name__
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


# Errors for clients: proto.md, "Error values". All others are replaced by EIO, and the
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
    """Return the error number to send to a client for *error* (proto.md, "Error values")."""
    number = getattr(error, "errno", None)
    if isinstance(error, MemoryError):
        number = errno.ENOMEM
    if number in _TELLABLE:
        return int(number)
    return _NARROWED.get(number, errno.EIO) if number is not None else errno.EIO
