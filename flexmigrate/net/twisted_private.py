"""The private names of Twisted that flexmigrate uses: all of them, and no other module uses one.

Twisted promises nothing about these. Each function or class here uses one thing and says why no
public name does it. `PRIVATE_NAMES` lists them; ``tests/net/test_twisted_private.py`` compares the
list with the Twisted that is installed, and says what to do about a name that has changed.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

from twisted.internet import base, tcp, unix
from twisted.internet._newtls import startTLS as _start_tls

_TCPPort = TypeVar("_TCPPort", bound=tcp.Port)
_UNIXPort = TypeVar("_UNIXPort", bound=unix.Port)


class PrivateName(NamedTuple):
    """A name of Twisted's that may change without notice.

    :ivar owner: the module or class that has it, as a dotted name.
    :ivar name: the name itself.
    :ivar parameters: of a function, those that it takes, in order; None for a value.
    :ivar user: the function or class of this module that uses it.
    """

    owner: str
    name: str
    parameters: tuple[str, ...] | None
    user: str


PRIVATE_NAMES = (
    PrivateName(
        "twisted.internet._newtls",
        "startTLS",
        ("transport", "contextFactory", "normal", "bypass"),
        "start_tls",
    ),
    PrivateName(
        "twisted.internet.abstract.FileDescriptor",
        "_writeDisconnected",
        None,
        "has_ended_writing",
    ),
    PrivateName(
        "twisted.internet.abstract.FileDescriptor", "_writeDisconnecting", None, "end_if_asked"
    ),
    PrivateName(
        "twisted.internet.abstract.FileDescriptor", "_postLoseConnection", ("self",), "end_if_asked"
    ),
    PrivateName(
        "twisted.internet.tcp.Connection", "_closeWriteConnection", ("self",), "end_if_asked"
    ),
    PrivateName("twisted.internet.tcp.Port", "_buildAddr", ("self", "address"), "peer_address"),
    PrivateName("twisted.internet.unix.Port", "_buildAddr", ("self", "name"), "peer_address"),
    PrivateName(
        "twisted.internet.tcp.Port",
        "_fromListeningDescriptor",
        ("reactor", "fd", "addressFamily", "factory"),
        "adopt_tcp_port",
    ),
    PrivateName(
        "twisted.internet.unix.Port",
        "_fromListeningDescriptor",
        ("reactor", "fd", "factory"),
        "adopt_unix_port",
    ),
    PrivateName("twisted.internet.tcp.Port", "_shouldShutdown", None, "adopt_unix_port"),
    PrivateName("twisted.internet.tcp.Connector", "_makeTransport", ("self",), "TCPConnector"),
    PrivateName("twisted.internet.unix.Connector", "_makeTransport", ("self",), "UNIXConnector"),
    PrivateName("twisted.internet.base.ReactorBase", "_pendingTimedCalls", None, "scheduled_calls"),
    PrivateName("twisted.internet.base.ReactorBase", "_newTimedCalls", None, "scheduled_calls"),
)


def start_tls(transport: Any, context: Any, normal: bool, below: type) -> None:
    """Put TLS between *transport* and its protocol.

    ``ITLSTransport.startTLS`` always has TLS write through ``FileDescriptor``, which copies, and
    sends each record with a call of its own.

    :param context: provides IOpenSSLContextFactory.
    :param normal: whether the side that has connected is TLS's client.
    :param below: the class whose ``write``, ``loseConnection``, ``registerProducer``, … TLS calls
        with *transport*.
    """
    _start_tls(transport, context, normal, below)


def has_ended_writing(transport: Any) -> bool:
    """Return whether *transport* was closed for writing.

    ``loseWriteConnection`` is public, but no attribute tells that it has taken effect.
    """
    return bool(transport._writeDisconnected)


def end_if_asked(transport: Any) -> BaseException | None:
    """Close *transport*, or close it for writing, where that was asked for while data waited to be
    sent; return what ``doWrite`` is to return.

    As at the end of ``FileDescriptor.doWrite``, which sends from a buffer of its own, so that ours
    replaces it.
    """
    if transport.disconnecting:
        closing: BaseException | None = transport._postLoseConnection()
        return closing
    if transport._writeDisconnecting:
        transport._writeDisconnected = True
        transport._closeWriteConnection()
    return None


def peer_address(port: Any, address: Any) -> Any:
    """Return *address*, as accept(2) returns it, as an IAddress, for ``buildProtocol``.

    A port's own ``doRead`` makes it; ours replaces it.
    """
    return port._buildAddr(address)


def adopt_tcp_port(
    kind: type[_TCPPort], reactor: Any, fd: int, family: int, factory: Any
) -> _TCPPort:
    """Return a port of *kind* for a copy of the listening socket *fd*, not yet started.

    ``reactor.adoptStreamPort`` always makes Twisted's own kind.
    """
    port: _TCPPort = kind._fromListeningDescriptor(reactor, fd, family, factory)  # type: ignore[no-untyped-call]  # Twisted's
    return port


def adopt_unix_port(kind: type[_UNIXPort], reactor: Any, fd: int, factory: Any) -> _UNIXPort:
    """Do so for a UNIX socket. The port won't shut the socket down for others who have it, as
    Twisted sees to for TCP only.
    """
    port: _UNIXPort = kind._fromListeningDescriptor(reactor, fd, factory)  # type: ignore[no-untyped-call]  # Twisted's
    port._shouldShutdown = False
    return port


class TCPConnector(tcp.Connector):
    """Makes a transport of another kind than Twisted's, by ``make_transport``.

    ``reactor.connectTCP`` always makes Twisted's own.
    """

    def make_transport(self) -> tcp.Client:
        """Return a new transport, which connects."""
        raise NotImplementedError

    def _makeTransport(self) -> tcp.Client:
        return self.make_transport()


class UNIXConnector(unix.Connector):
    """Does so for UNIX sockets."""

    def make_transport(self) -> unix.Client:
        """Return a new transport, which connects."""
        raise NotImplementedError

    def _makeTransport(self) -> unix.Client:  # type: ignore[override]  # as in Twisted itself
        return self.make_transport()


def scheduled_calls(reactor: Any) -> list[base.DelayedCall]:
    """Return all scheduled calls of *reactor*, cancelled ones, too.

    ``getDelayedCalls`` leaves out those that are cancelled, and are still in their places.

    :raises TypeError: it isn't one of Twisted's own reactors.
    """
    try:
        return [*reactor._pendingTimedCalls, *reactor._newTimedCalls]
    except AttributeError:
        raise TypeError(f"{reactor!r} is not one of Twisted's own reactors") from None
