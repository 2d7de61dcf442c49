"""An export served over a feed of `support.feeds`, and clients of it that keep the rules.

The client's replies are judged by the client library's parser: what it takes, a strict client
takes. `ask` sends, `answer` gives what came.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.image.file import Image
from flexmigrate.image.file_storage import FileStorage
from flexmigrate.image.pace import Pace
from flexmigrate.net.acl import AccessList
from flexmigrate.server.export import Export, ExportDirectory
from flexmigrate.server.factory import NBDServerFactory, OpenSession
from flexmigrate.server.limits import Limits
from flexmigrate.wire.agreement import Agreement, Ready, Send
from flexmigrate.wire.client_handshake import ClientHandshake, ClientOptions
from flexmigrate.wire.constants import BASE_ALLOCATION, Command, CommandFlag
from flexmigrate.wire.pending import PendingRequest
from flexmigrate.wire.reply_parser import ReplyParser
from flexmigrate.wire.requests import pack_request
from support.feeds import Bench, PlainFeed, StreamFeed

SIMPLE = ClientOptions(structured=False, extended=False)
STRUCTURED = ClientOptions(extended=False, contexts=(BASE_ALLOCATION, "flexmigrate:dirty"))
EXTENDED = ClientOptions(contexts=(BASE_ALLOCATION, "flexmigrate:dirty"))
STYLES = {"simple": SIMPLE, "structured": STRUCTURED, "extended": EXTENDED}

FEEDS = (PlainFeed, StreamFeed)


class Unhurried(Pace):
    """The pace of an image whose writes never wait, however busy the test's machine is. So the
    requests in one packet are carried out in order, which tests rely on.
    """

    def turn_was_slow(self, seconds: float) -> None:
        """Don't mind."""


class TestImage(Image):
    """An image on a disk that the test has in hand.

    :ivar cold: whether nothing of it is in memory.
    :ivar faults: what each method, by name, raises.
    :ivar bad: offsets at which nothing can be read.
    :ivar done: (name, offset, length) of what was changed, in order.
    """

    __test__ = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pace = Unhurried()
        self.cold = False
        self.faults: dict[str, Exception] = {}
        self.bad: set[int] = set()
        self.done: list[tuple[str, int, int]] = []

    def _meet(self, name: str) -> None:
        if name in self.faults:
            raise self.faults[name]

    def try_read_into(self, view: memoryview, offset: int) -> bool:
        return not self.cold and super().try_read_into(view, offset)

    def may_block_write(self, offset: int, length: int) -> bool:
        return self.cold or super().may_block_write(offset, length)

    def is_resident(self, offset: int, length: int) -> bool:
        return not self.cold and super().is_resident(offset, length)

    def read(self, offset: int, length: int) -> bytes:
        self._meet("read")
        if offset in self.bad:
            raise OSError(errno.EIO, "bad sector")
        return super().read(offset, length)

    def write(self, view: Any, offset: int) -> None:
        self._meet("write")
        super().write(view, offset)
        self.done.append(("write", offset, len(view)))

    def zero(self, offset: int, length: int, *, may_punch: bool, fast_only: bool = False) -> None:
        self._meet("zero")
        super().zero(offset, length, may_punch=may_punch, fast_only=fast_only)
        self.done.append(("zero", offset, length))

    def trim(self, offset: int, length: int) -> None:
        self._meet("trim")
        super().trim(offset, length)
        self.done.append(("trim", offset, length))

    def flush(self) -> None:
        self._meet("flush")
        super().flush()
        self.done.append(("flush", 0, 0))


class Served:
    """An image of some bytes, served. `close` it.

    :ivar bench: see `support.feeds`.
    :ivar image: see TestImage.
    """

    def __init__(
        self, content: bytes = b"", *, size: int = 0, ring: bool = False, **factory: Any
    ) -> None:
        with tempfile.NamedTemporaryFile(suffix=".img", delete=False) as file:
            file.write(content)
            file.truncate(max(size, len(content)))
        self.path = path = file.name
        self.bench = Bench()
        read_only = factory.pop("read_only", False)
        image = TestImage.open(path, read_only=read_only)
        assert isinstance(image, TestImage)
        self.image = image
        pool: Any = self.bench.pool
        self.storage = FileStorage(image, self.bench.reactor, pool, may_have_ring=ring)
        self.export = Export("", self.storage)
        factory.setdefault("acl", AccessList([], default_deny=False))
        self.factory = NBDServerFactory(
            self.bench.reactor, ExportDirectory([self.export]), **factory
        )

    def content(self) -> bytes:
        """Return what the file holds."""
        with open(self.path, "rb") as file:
            return file.read()

    def data_bytes(self) -> int:
        """Return how many bytes the file takes on its disk."""
        return os.stat(self.path).st_blocks * 512

    def client(self, feed: Any, wish: ClientOptions = SIMPLE, **options: Any) -> Client:
        """Connect and negotiate."""
        return Client(self.bench, feed(self.bench, self.factory, **options), wish)

    def close(self) -> None:
        """End all, and remove the image."""
        self.bench.settle()
        self.storage.close()
        self.bench.settle()
        self.bench.close()
        os.unlink(self.path)


class Client:
    """One client's connection in its transmission phase.

    :ivar feed: the connection's client end.
    :ivar agreement: what was negotiated.
    :ivar order: the cookies, in the order of their replies.
    """

    def __init__(self, bench: Bench, feed: Any, wish: ClientOptions) -> None:
        self.bench = bench
        self.feed = feed
        self._handshake = ClientHandshake(wish)
        self._cookies = itertools.count(1)
        self._views: dict[int, bytearray] = {}
        self._answered: dict[int, PendingRequest] = {}
        self.order: list[int] = []
        self.agreement = self._negotiate()
        self.parser = ReplyParser(
            structured=self.agreement.structured, extended=self.agreement.extended
        )

    def _negotiate(self) -> Agreement:
        while True:
            self.bench.settle()
            came = bytes(self.feed.received)
            self.feed.received.clear()
            assert came, "the server says nothing"
            for event in self._handshake.receive(came):
                if isinstance(event, Send):
                    self.feed.send(event.data)
                elif isinstance(event, Ready):
                    return event.agreement
                else:
                    raise AssertionError(event)

    def request(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        *,
        flags: int = 0,
        payload: bytes | None = None,
        contexts: Iterable[int] | None = None,
        effect: int | None = None,
    ) -> bytes:
        """Return a request's bytes, its reply being expected from then on.

        :param contexts: of a BLOCK_STATUS, where not all are to be answered.
        :param effect: its effect length, where *length* is that of its payload.
        """
        cookie = self.last = next(self._cookies)
        if command == Command.WRITE:
            payload = bytes(length) if payload is None else payload
            length = len(payload)
            if self.agreement.extended:
                flags |= CommandFlag.PAYLOAD_LEN
        self._expect(cookie, command, flags, offset, effect or length, contexts)
        extended = self.agreement.extended
        return pack_request(extended, int(flags), command, cookie, offset, length) + (
            payload or b""
        )

    def _expect(
        self,
        cookie: int,
        command: int,
        flags: int,
        offset: int,
        length: int,
        contexts: Iterable[int] | None,
    ) -> None:
        kind: Any = Command(command) if command in list(Command) else command
        view = None
        if command == Command.READ and length < 1 << 30:
            # Not zeroes, so that bytes that never came are seen.
            self._views[cookie] = bytearray(b"\xee") * length
            view = memoryview(self._views[cookie])
        if contexts is None:
            contexts = [number for number, _ in self.agreement.contexts]
        awaited = PendingRequest(
            kind,
            offset,
            length,
            view=view,
            unfragmented=bool(flags & CommandFlag.DF),
            contexts=contexts if command == Command.BLOCK_STATUS else (),
            one_extent=bool(flags & CommandFlag.REQ_ONE),
        )
        self.parser.expect(cookie, awaited)

    def ask(self, command: int, offset: int = 0, length: int = 0, **more: Any) -> int:
        """Send a request in one packet; return its cookie."""
        self.feed.send(self.request(command, offset, length, **more))
        return self.last

    def write(self, offset: int, payload: bytes, flags: int = 0) -> int:
        """Send a write; return its cookie."""
        return self.ask(Command.WRITE, offset, payload=payload, flags=flags)

    def say_goodbye(self) -> None:
        """Send DISC."""
        self.feed.send(pack_request(self.agreement.extended, 0, Command.DISC, 0, 0, 0))

    def collect(self) -> list[int]:
        """Return the cookies of the replies that came until now, all settled."""
        self.bench.settle()
        came = bytes(self.feed.received)
        self.feed.received.clear()
        self.parser.receive(came)
        fresh = []
        for cookie, awaited in self.parser.take():
            self._answered[cookie] = awaited
            fresh.append(cookie)
        self.order += fresh
        return fresh

    def is_answered(self, cookie: int) -> bool:
        """Return whether the reply has come."""
        self.collect()
        return cookie in self._answered

    def error(self, cookie: int) -> int:
        """Return the error that a request was answered with; 0 for success."""
        assert self.is_answered(cookie), "no reply"
        failure = self._answered[cookie].failure
        return 0 if failure is None else failure.errno

    def data(self, cookie: int) -> bytes:
        """Return what a read that succeeded was answered with."""
        assert self.error(cookie) == 0
        return bytes(self._views[cookie])

    def extents(self, cookie: int) -> dict[str, list[tuple[int, int]]]:
        """Return what a BLOCK_STATUS was answered with, by the contexts' names."""
        assert self.error(cookie) == 0
        names = dict(self.agreement.contexts)
        return {names[key]: found for key, found in self._answered[cookie].extents.items()}

    def read(self, offset: int, length: int, flags: int = 0) -> bytes:
        """Read; return the bytes."""
        return self.data(self.ask(Command.READ, offset, length, flags=flags))

    @property
    def ended(self) -> bool:
        """Whether the connection has ended."""
        self.collect()
        return bool(self.feed.ended)


class NotingSession(OpenSession):
    """Notes what it is told; DISC is settled as the test says.

    :ivar settled: returns what a DISC is answered with.
    """

    def __init__(self) -> None:
        self.events: list[str] = []
        self.settled: Callable[[], Deferred[bool]] = lambda: succeed(True)

    def connected(self, connection: Any) -> None:
        self.events.append("connected")

    def options(self) -> dict[int, Any]:
        return {}

    def gate(self, export: str, private: object) -> str | None:
        return None

    def private(
        self, connection: Any, command: int, offset: int, length: int, payload: bytes
    ) -> Any:
        return None

    def transmitting(self, connection: Any) -> None:
        self.events.append("transmitting")

    def disconnecting(self, connection: Any) -> Deferred[bool]:
        self.events.append("disconnecting")
        return self.settled()

    def lost(self, connection: Any) -> None:
        self.events.append("lost")


class Recorder:
    """An observer of an export that notes the order of events, replies among them."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def mark(self, offset: int, length: int) -> None:
        self.events.append(("marked", offset, length))

    def failed(self, offset: int, length: int, error: BaseException) -> None:
        self.events.append(("failed", offset, length))

    def flush_failed(self, error: BaseException) -> None:
        self.events.append(("flush failed",))

    def refused(self, text: str) -> None:
        self.events.append(("refused", text))


class SuiteBase:
    """The state in which each test of a suite begins; see `each_way`.

    :cvar size: of the image, in bytes.
    :cvar limits: of the server.
    :ivar bytes: what the image holds.
    """

    feed: Any
    wish: Any
    size = 4 << 20
    limits: Limits | None = None
    addCleanup: Callable[..., None]  # noqa: N815  # unittest's

    def setUp(self) -> None:
        self.bytes = bytearray(random.Random(11).randbytes(self.size))
        self.session = NotingSession()
        self.served = Served(bytes(self.bytes), session=self.session, limits=self.limits)
        self.addCleanup(self.served.close)
        self.bench = self.served.bench
        self.export = self.served.export
        self.client = self.connect()

    def connect(self) -> Client:
        """Return another client."""
        return self.served.client(self.feed, self.wish)


def each_way(suite: type, namespace: dict[str, Any]) -> None:
    """Put a test case into *namespace* for each pair of a feed and a style of replies.

    :param suite: a mixin of tests, which finds the pair in `self.feed` and `self.wish`.
    """
    for feed in FEEDS:
        for style, wish in STYLES.items():
            name = f"{suite.__name__.removesuffix('Suite')}_{feed.name}_{style}"
            body = {"feed": feed, "wish": wish, "__module__": suite.__module__}
            namespace[name] = type(name, (suite, SynchronousTestCase), body)
