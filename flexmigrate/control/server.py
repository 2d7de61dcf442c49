"""The server of the operator's socket: it passes commands to an `Operator`, and sends answers.

The `Operator` carries commands out; `grammar` defines their form.
Every command that has arrived when an answer is ready is answered,
in order; then the connection is closed, as flexnbd closes it.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol, IListeningPort
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as ConnectionProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from flexmigrate.control.grammar import (
    FAILED,
    OK,
    CommandReader,
    encode_answer,
    parse_converge,
    parse_export,
    parse_max_bps,
    parse_mirror,
)
from flexmigrate.errors import CommandError, FlexmigrateError
from flexmigrate.migration.request import ConvergeChange, MirrorRequest
from flexmigrate.net.unix_socket import listen_private
from flexmigrate.telemetry.fields import format_fields
from flexmigrate.telemetry.history import Summary
from flexmigrate.telemetry.status import Status, format_status

# Commands of one connection that may wait for a slow one, like ``mirror``.
MAX_WAITING = 16

MAX_CONNECTIONS = 64
"""Connections at a time. If there are so many, an idle one makes room for a new one."""

ASK_SECONDS = 60.0
"""Seconds that a connection may take for its first command: enough to type it."""

FINISH_SECONDS = 2.0
"""Seconds that the end of the process waits for an operator to take an answer."""


class Operator(Protocol):
    """The commands that a server carries out. Each text that is returned is the answer.

    A `FlexmigrateError`, raised or in the `Deferred`, is answered with its text and code 1.
    """

    def status(self, export: str | None) -> Status:
        """Return the current status of the server and one export.

        :param export: its name; None for the default one.
        """

    def set_acl(self, entries: list[str]) -> None:
        """Replace the access list, for connected clients too.

        :raises BadEntry: if an entry is none (`flexmigrate.net.acl`); the old list then stays.
        """

    def mirror(self, request: MirrorRequest) -> Deferred[str]:
        """Start a migration; fire once the destination has answered, or failed to."""

    def wait(self, export: str | None) -> Deferred[Summary]:
        """Fire once the running migration has ended; at once if none is running."""

    def set_max_bps(self, n: int, export: str | None) -> str:
        """Limit the running migration to *n* bytes per second; 0 lifts the limit."""

    def set_converge(self, change: ConvergeChange, export: str | None) -> str:
        """Change the settings of the running migration's convergence."""

    def break_mirror(self, export: str | None) -> str:
        """Stop the running migration; the server goes on serving."""


async def _status(operator: Operator, arguments: list[str]) -> str:
    arguments, export = parse_export(arguments)
    _expect_none("status", arguments)
    return format_status(operator.status(export))


async def _acl(operator: Operator, arguments: list[str]) -> str:
    operator.set_acl(arguments)
    return "updated"


async def _mirror(operator: Operator, arguments: list[str]) -> str:
    return await operator.mirror(parse_mirror(arguments))


async def _wait(operator: Operator, arguments: list[str]) -> str:
    arguments, export = parse_export(arguments)
    _expect_none("wait", arguments)
    summary = await operator.wait(export)
    text = format_fields(summary)
    if not summary.succeeded:
        raise CommandError(text)
    return text


async def _mirror_max_bps(operator: Operator, arguments: list[str]) -> str:
    arguments, export = parse_export(arguments)
    return operator.set_max_bps(parse_max_bps(arguments), export)


async def _converge(operator: Operator, arguments: list[str]) -> str:
    return operator.set_converge(*parse_converge(arguments))


async def _break(operator: Operator, arguments: list[str]) -> str:
    arguments, export = parse_export(arguments)
    _expect_none("break", arguments)
    return operator.break_mirror(export)


COMMANDS: dict[str, Callable[[Operator, list[str]], Awaitable[str]]] = {
    "status": _status,
    "acl": _acl,
    "mirror": _mirror,
    "mirror_max_bps": _mirror_max_bps,
    "converge": _converge,
    "break": _break,
    "wait": _wait,
}


# Commands that change nothing, and are of no use once their caller has gone.
ONLY_WAITING = frozenset({"wait"})


def _expect_none(name: str, arguments: list[str]) -> None:
    if arguments:
        raise CommandError(f"{name} takes no arguments")


async def obey(operator: Operator, lines: list[str]) -> str:
    """Have *operator* carry out the command *lines*; return the text of the answer.

    :raises FlexmigrateError: if it can't be; the text is the answer.
    """
    if not lines:
        raise CommandError("missing command")
    name, *arguments = lines
    command = COMMANDS.get(name)
    if command is None:
        raise CommandError(f"unknown command {name!r}; there are {', '.join(COMMANDS)}")
    return await command(operator, arguments)


@implementer(IHalfCloseableProtocol)
class ControlProtocol(ConnectionProtocol):
    """One connection to the operator's socket.

    :param lost: called with the protocol when the connection is gone and no answer is left to send.
    :param reactor: limits the time until the first command; None for no limit.
    """

    _log = Logger()

    def __init__(
        self,
        operator: Operator,
        lost: Callable[[ControlProtocol], None],
        reactor: Any = None,
    ) -> None:
        self._operator = operator
        self._lost = lost
        self._reactor = reactor
        self._timer: Any = None
        self._reader = CommandReader()
        self._waiting: deque[list[str]] = deque()
        self._answering: Deferred[None] | None = None
        self._only_waits = False
        self._ended = False

    def connectionMade(self) -> None:
        """Wait for a command."""
        if self._reactor is not None:
            self._timer = self._reactor.callLater(ASK_SECONDS, self.leave)

    @property
    def is_idle(self) -> bool:
        """Whether no command has come yet."""
        return self._answering is None and not self._ended

    def leave(self) -> None:
        """End the connection at once."""
        self._ended = True
        transport: Any = self.transport
        transport.abortConnection()

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def dataReceived(self, data: bytes) -> None:
        """Take the next bytes of the operator's commands."""
        self._take(lambda: self._reader.receive(data))

    def readConnectionLost(self) -> None:
        """Handle the end of input, which ends a command; its answer can still be sent."""
        self._take(self._reader.finish)
        if self._answering is None or (self._only_waits and _is_closed(self.transport)):
            self._end()

    def writeConnectionLost(self) -> None:
        """Go on with the commands that were given, though nobody reads the answers any more."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Drop waiting commands: their sender hasn't seen the answer that they were to follow."""
        self._ended = True
        self._stop_timer()
        self._waiting.clear()
        if self._only_waits and self._answering is not None:
            self._answering.cancel()
        self._lost(self)

    def finish(self) -> None:
        """Close the connection, unless an answer is still to be sent."""
        if self._answering is None:
            self._end()

    def _take(self, read: Callable[[], list[list[str]]]) -> None:
        if self._ended:
            return
        try:
            self._waiting.extend(read())
            if len(self._waiting) > MAX_WAITING:
                raise CommandError(f"more than {MAX_WAITING} commands are waiting")
        except CommandError as refusal:
            self._end(encode_answer(FAILED, str(refusal)))
            return
        if self._waiting and self._answering is None:
            self._stop_timer()
            self._answering = Deferred.fromCoroutine(self._answer_all())
            self._answering.addErrback(self._failed)

    async def _answer_all(self) -> None:
        while self._waiting:
            command = self._waiting.popleft()
            self._only_waits = bool(command) and command[0] in ONLY_WAITING
            answer = await self._answer(command)
            if not self._ended:
                self._write(answer)
        self._end()

    async def _answer(self, lines: list[str]) -> bytes:
        try:
            code, text = OK, await obey(self._operator, lines)
        except FlexmigrateError as refusal:
            code, text = FAILED, str(refusal)
        # Programs ask for the status every second; only what may change something is logged.
        note = self._log.debug if lines == ["status"] else self._log.info
        note("command {command!r}: {code}: {text}", command=" ".join(lines), code=code, text=text)
        return encode_answer(code, text)

    def _failed(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return  # the connection is gone
        self._log.failure("a command of the operator failed with an unexpected error", failure)
        self._end(encode_answer(FAILED, "internal error; the server's log has the details"))

    def _write(self, data: bytes) -> None:
        assert self.transport is not None  # Twisted calls nothing here before it is set.
        self.transport.write(data)

    def _end(self, last_words: bytes = b"") -> None:
        if self._ended:
            return
        self._ended = True
        self._waiting.clear()
        self._write(last_words)
        assert self.transport is not None
        self.transport.loseConnection()


class ControlFactory(Factory):
    """Connections to the operator's socket, over any transport.

    :param operator: carries out their commands.
    :param reactor: see `ControlProtocol`.
    """

    noisy = False

    def __init__(self, operator: Operator, reactor: Any = None) -> None:
        self._operator = operator
        self._reactor = reactor
        self._connections: dict[ControlProtocol, None] = {}  # the oldest first
        self._finished: Deferred[None] | None = None

    def buildProtocol(self, addr: IAddress | None) -> ControlProtocol | None:
        """Return the protocol of a new connection; None if there are too many that wait."""
        if not self._has_room():
            ControlProtocol._log.warn(
                "refused a connection to the operator's socket: {most} are open",
                most=MAX_CONNECTIONS,
            )
            return None
        connection = ControlProtocol(self._operator, self._lost, self._reactor)
        self._connections[connection] = None
        return connection

    def _has_room(self) -> bool:
        if len(self._connections) < MAX_CONNECTIONS:
            return True
        for each in list(self._connections):
            if each.is_idle:
                each.leave()
                self._connections.pop(each, None)
                return True
        return False

    def _lost(self, connection: ControlProtocol) -> None:
        self._connections.pop(connection, None)
        if self._finished is not None and not self._connections:
            finished, self._finished = self._finished, None
            finished.callback(None)

    def finish(self) -> Deferred[None]:
        """Close idle connections, and fire once all others are
        answered.
        """
        for connection in list(self._connections):
            connection.finish()
        if not self._connections:
            return succeed(None)
        self._finished = Deferred(self._stop_waiting)
        return self._finished

    def _stop_waiting(self, _: Deferred[None]) -> None:
        self._finished = None


class ControlPort:
    """The operator's socket, open.

    :param port: the listening port.
    """

    def __init__(self, reactor: Any, port: IListeningPort, factory: ControlFactory) -> None:
        self._reactor = reactor
        self._port = port
        self._factory = factory

    def stopListening(self) -> Deferred[None]:
        """Accept no more connections; open ones stay."""
        return maybeDeferred(self._port.stopListening).addCallback(lambda _: None)

    def finish(self) -> Deferred[None]:
        """Fire once every answer has been sent: what a process has not yet sent when it ends is
        lost, and it may be the answer that somebody has waited for since yesterday.

        Somebody who doesn't read answers isn't waited for longer than `FINISH_SECONDS`.
        """
        finishing = self._factory.finish().addTimeout(FINISH_SECONDS, self._reactor)
        finishing.addErrback(lambda failure: failure.trap(DeferredTimeout))
        return finishing.addCallback(lambda _: None)


def listen_control(reactor: Any, path: str, operator: Operator) -> ControlPort:
    """Open the operator's socket at *path*, with *operator* to carry out its commands.

    :raises SocketPathError: see `flexmigrate.net.unix_socket.listen_private`.
    """
    factory = ControlFactory(operator, reactor)
    return ControlPort(reactor, listen_private(reactor, path, factory), factory)


def _is_closed(transport: Any) -> bool:
    """Return whether the peer has closed its socket, rather than only ended its output.

    Both are read as the end of input; poll(2) tells them apart, by POLLHUP.
    """
    try:
        fd = transport.fileno()
    except AttributeError:
        return False  # a transport in memory
    poll = select.poll()
    poll.register(fd, 0)
    return any(event & select.POLLHUP for _, event in poll.poll(0))
