from __future__ import annotations

import random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.error import (
    CannotListenError,
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
)
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.error import TimeoutError as TimedOut
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThreadPool
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.testing import (
    Connection,
    InlineClock,
    InlineThreads,
    Lane,
    Machine,
    Stuck,
    Threads,
    World,
)
from flexmigrate.testing.disk import Died

PORT = 10809


class Recorder(Protocol):
    """Keeps what it receives, and the reason of the end."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.lost: list[type[BaseException]] = []
        self.word: list[str] = []

    @property
    def data(self) -> bytes:
        return b"".join(self.received)

    def dataReceived(self, data: bytes) -> None:
        self.received.append(data)

    def connectionLost(self, reason: Any = None) -> None:
        self.lost.append(type(reason.value))

    def pauseProducing(self) -> None:
        self.word.append("pause")

    def resumeProducing(self) -> None:
        self.word.append("resume")

    def stopProducing(self) -> None:
        self.word.append("stop")


class Pair:
    """Two recorders at the ends of a connection, through Twisted's own endpoints."""

    def __init__(self, seed: int | None = None, **world: Any) -> None:
        self.world = World(seed, **world)
        self.here = Machine(self.world, "here", "192.0.2.1")
        self.there = Machine(self.world, "there", "192.0.2.2")
        self.servers: list[Recorder] = []
        self.port = self.world.result_of(
            TCP4ServerEndpoint(self.there, PORT).listen(Factory.forProtocol(self._server))
        )

    def _server(self) -> Recorder:
        self.servers.append(Recorder())
        return self.servers[-1]

    def dial(self, host: str = "192.0.2.2", port: int = PORT) -> Deferred[Any]:
        endpoint = TCP4ClientEndpoint(self.here, host, port, timeout=7)
        return endpoint.connect(Factory.forProtocol(Recorder))

    def connect(self) -> Pair:
        self.client: Recorder = self.world.result_of(self.dial())
        self.world.settle()
        self.server = self.servers[-1]
        self.connection: Connection = self.world.connections[-1]
        return self

    def say(self, data: bytes) -> None:
        self.client.transport.write(data)


class ClockTests(SynchronousTestCase):
    def test_time_passes_only_when_nothing_else_can_happen(self) -> None:
        world = World()
        machine = Machine(world, "m", "192.0.2.1")
        order: list[Any] = []
        machine.callLater(1.0, order.append, "later")
        machine.callLater(0.0, order.append, "now")
        for each in range(3):
            machine.callFromThread(order.append, each)
        world.settle()
        self.assertEqual(order, ["now", 0, 1, 2])
        world.run_until(lambda: "later" in order)
        self.assertEqual(world.clock.seconds(), 1.0)

    def test_advancing_lets_happen_what_falls_due_in_its_order(self) -> None:
        world = World()
        order: list[float] = []
        machine = Machine(world, "m", "192.0.2.1")
        for delay in (2.0, 1.0, 3.0):
            machine.callLater(
                delay, lambda: machine.callFromThread(lambda: order.append(machine.seconds()))
            )
        world.advance(2.5)
        self.assertEqual(order, [1.0, 2.0])
        self.assertEqual(world.clock.seconds(), 2.5)

    def test_waiting_in_vain_is_told(self) -> None:
        world = World()
        with self.assertRaises(Stuck):
            world.run_until(lambda: False)
        Machine(world, "m", "192.0.2.1").callLater(10, lambda: None)
        with self.assertRaises(Stuck):
            world.result_of(Deferred(), seconds=9)
        self.assertEqual(world.clock.seconds(), 0.0)

    def test_a_failure_that_is_waited_for_is_raised(self) -> None:
        waited: Deferred[None] = Deferred()
        waited.errback(KeyError("x"))
        with self.assertRaises(KeyError):
            World().result_of(waited)

    def test_who_always_does_something_is_called_each_so_many_steps(self) -> None:
        world = World()
        lane, calls = Lane(world), []
        for _ in range(10):
            lane.add(lambda: None)
        world.every(3, lambda: calls.append(1))
        world.run_until(lambda: not lane.ready)
        self.assertEqual(len(calls), 3)


class SeedTests(SynchronousTestCase):
    def order(self, seed: int | None) -> list[int]:
        world = World(seed)
        order: list[int] = []
        lanes = [Lane(world) for _ in range(4)]
        for each in range(40):
            lanes[each % 4].add(lambda each=each: order.append(each))
        world.settle()
        return order

    def test_without_one_what_waited_longest_comes_first(self) -> None:
        self.assertEqual(self.order(None), list(range(40)))

    def test_the_same_draws_the_same_and_another_draws_differently(self) -> None:
        orders = [self.order(seed) for seed in range(20)]
        self.assertEqual(orders, [self.order(seed) for seed in range(20)])
        self.assertEqual(len({tuple(order) for order in orders}), 20)

    def test_a_lane_keeps_its_order(self) -> None:
        for seed in range(20):
            order = self.order(seed)
            for lane in range(4):
                mine = [each for each in order if each % 4 == lane]
                self.assertEqual(mine, sorted(mine))

    def test_what_is_blocked_does_not_happen(self) -> None:
        world = World(1)
        lane, done = Lane(world), []
        lane.add(lambda: done.append(1))
        lane.blocked = True
        world.settle()
        self.assertEqual(done, [])
        lane.blocked = False
        world.settle()
        self.assertEqual(done, [1])


class ThreadsTests(SynchronousTestCase):
    def test_jobs_are_done_when_the_world_comes_to_them(self) -> None:
        world = World()
        machine = Machine(world, "m", "192.0.2.1")
        pool: Any = Threads(world)
        pool.start()
        result = deferToThreadPool(machine, pool, divmod, 17, 5)
        self.assertNoResult(result)
        self.assertEqual(world.result_of(result), (3, 2))
        with self.assertRaises(ZeroDivisionError):
            world.result_of(deferToThreadPool(machine, pool, divmod, 17, 0))
        pool.stop()

    def test_with_a_seed_they_are_done_in_any_order(self) -> None:
        def order(seed: int) -> tuple[int, ...]:
            world = World(seed)
            machine, done = Machine(world, "m", "192.0.2.1"), []
            pool: Any = Threads(world)
            for each in range(5):
                deferToThreadPool(machine, pool, done.append, each)
            lanes = len(world.lanes)
            world.settle()
            self.assertEqual(lanes - len(world.lanes), 5)
            return tuple(done)

        self.assertGreater(len({order(seed) for seed in range(20)}), 10)

    def test_inline_they_are_done_at_once(self) -> None:
        reactor: Any = InlineClock()
        pool: Any = InlineThreads()
        self.assertEqual(self.successResultOf(deferToThreadPool(reactor, pool, abs, -3)), 3)
        self.failureResultOf(deferToThreadPool(reactor, pool, int, "x"), ValueError)


class ConnectionTests(SynchronousTestCase):
    def test_carries_bytes_both_ways(self) -> None:
        pair = Pair().connect()
        pair.say(b"hello")
        pair.server.transport.writeSequence([b"good", b"bye"])
        pair.world.settle()
        self.assertEqual((pair.server.received, pair.client.received), ([b"hello"], [b"goodbye"]))
        self.assertEqual(pair.client.transport.getPeer(), pair.server.transport.getHost())
        self.assertEqual(pair.server.transport.getPeer().host, "192.0.2.1")

    def test_with_a_seed_bytes_come_in_any_pieces_and_in_their_order(self) -> None:
        text = random.Random(1).randbytes(300)
        pieces = set()
        for seed in range(20):
            pair = Pair(seed).connect()
            for at in range(0, 300, 100):
                pair.say(text[at : at + 100])
            pair.world.settle()
            self.assertEqual(pair.server.data, text)
            pieces.add(tuple(map(len, pair.server.received)))
        self.assertGreater(len(pieces), 5)

    def test_what_is_sent_before_it_is_accepted_waits(self) -> None:
        pair = Pair()
        pair.client = pair.world.result_of(pair.dial())
        pair.say(b"early")
        self.assertEqual(pair.servers, [])
        pair.world.settle()
        self.assertEqual(pair.servers[0].data, b"early")

    def test_nobody_there(self) -> None:
        with self.assertRaises(Refused):
            pair = Pair()
            pair.world.result_of(pair.dial(port=1))

    def test_nobody_answers(self) -> None:
        pair = Pair()
        pair.world.unreachable.add("192.0.2.9")
        with self.assertRaises(TimedOut):
            pair.world.result_of(pair.dial("192.0.2.9"))
        self.assertEqual(pair.world.clock.seconds(), 7.0)

    def test_can_be_given_up_while_it_is_made(self) -> None:
        pair = Pair()
        attempt = pair.dial()
        attempt.cancel()
        self.failureResultOf(attempt)
        pair.world.settle()
        self.assertEqual((pair.servers, pair.world.connections), ([], []))
        self.assertEqual(pair.world.clock.getDelayedCalls(), [])

    def test_a_server_may_refuse_it(self) -> None:
        pair = Pair()
        pair._server = lambda: None  # type: ignore[assignment, method-assign, return-value]
        pair.port.factory.buildProtocol = lambda address: None
        client = pair.world.result_of(pair.dial())
        pair.world.settle()
        self.assertEqual(client.lost, [ConnectionDone])


class EndTests(SynchronousTestCase):
    def test_closing_waits_until_all_has_arrived(self) -> None:
        pair = Pair().connect()
        pair.say(b"last words")
        pair.client.transport.loseConnection()
        pair.world.settle()
        self.assertEqual(pair.server.data, b"last words")
        self.assertEqual((pair.client.lost, pair.server.lost), ([ConnectionDone],) * 2)
        self.assertTrue(pair.connection.is_over)

    def test_closing_on_what_was_not_read_is_a_reset(self) -> None:
        pair = Pair().connect()
        pair.server.transport.pauseProducing()
        pair.say(b"unread")
        pair.world.settle()
        pair.server.transport.loseConnection()
        pair.world.settle()
        self.assertEqual(pair.client.lost, [ConnectionLost])

    def test_aborting_loses_what_is_under_way(self) -> None:
        pair = Pair().connect()
        pair.say(b"lost")
        pair.client.transport.abortConnection()
        pair.world.settle()
        self.assertEqual(pair.server.data, b"")
        self.assertEqual(
            (pair.client.lost, pair.server.lost), ([ConnectionAborted], [ConnectionLost])
        )

    def test_cut_at_a_byte(self) -> None:
        for seed in (None, 1, 2):
            for at in range(8):
                pair = Pair(seed)
                pair.world.connected = lambda made, at=at: setattr(made.server.wire, "cut_at", at)
                pair.connect()
                pair.say(b"12")
                pair.say(b"34567890")
                pair.world.settle()
                self.assertEqual(pair.server.data, b"1234567890"[:at])
                self.assertEqual((pair.client.lost, pair.server.lost), ([ConnectionLost],) * 2)

    def test_frozen_nothing_arrives_and_nobody_is_told(self) -> None:
        pair = Pair().connect()
        pair.connection.freeze()
        pair.say(b"lost")
        pair.world.advance(1000)
        self.assertEqual((pair.server.data, pair.client.lost, pair.server.lost), (b"", [], []))
        pair.client.transport.abortConnection()
        pair.world.settle()
        self.assertEqual((pair.client.lost, pair.server.lost), ([ConnectionAborted], []))

    def test_nothing_is_sent_after_it(self) -> None:
        pair = Pair().connect()
        pair.client.transport.abortConnection()
        pair.say(b"late")
        pair.client.transport.loseConnection()
        pair.client.transport.abortConnection()
        pair.world.settle()
        self.assertEqual((pair.server.data, len(pair.client.lost)), (b"", 1))


class BackPressureTests(SynchronousTestCase):
    def test_a_producer_is_paused_until_all_has_arrived(self) -> None:
        pair = Pair(window=10).connect()
        pair.client.transport.registerProducer(pair.client, True)
        pair.say(b"x" * 10)
        self.assertEqual(pair.client.word, [])
        pair.say(b"x")
        self.assertEqual(pair.client.word, ["pause"])
        pair.world.settle()
        self.assertEqual(pair.client.word, ["pause", "resume"])
        pair.connection.cut()
        pair.world.settle()
        self.assertEqual(pair.client.word[-1], "stop")

    def test_who_does_not_read_gets_nothing(self) -> None:
        pair = Pair().connect()
        pair.server.transport.pauseProducing()
        pair.say(b"wait")
        pair.world.settle()
        self.assertEqual(pair.server.data, b"")
        pair.server.transport.resumeProducing()
        pair.world.settle()
        self.assertEqual(pair.server.data, b"wait")

    def test_a_slow_link_takes_its_time(self) -> None:
        pair = Pair().connect()
        pair.connection.server.wire.bandwidth = 100.0
        for _ in range(5):
            pair.say(b"x" * 50)
        pair.world.run_until(lambda: len(pair.server.data) == 250)
        self.assertAlmostEqual(pair.world.clock.seconds(), 2.5)

    def test_only_push_producers_are_known(self) -> None:
        with self.assertRaises(ValueError):
            pair = Pair().connect()
            pair.client.transport.registerProducer(pair.client, False)


class PortTests(SynchronousTestCase):
    def test_a_port_is_had_once(self) -> None:
        pair = Pair()
        listening = TCP4ServerEndpoint(pair.there, PORT).listen(Factory())
        error = self.failureResultOf(listening, CannotListenError).value
        self.assertEqual(error.socketError.errno, 98)
        pair.world.result_of(pair.port.stopListening())
        pair.world.result_of(TCP4ServerEndpoint(pair.there, PORT).listen(Factory()))

    def test_any_port_is_a_free_one(self) -> None:
        pair = Pair()
        ports = {pair.there.listenTCP(0, Factory()).getHost().port for _ in range(5)}
        self.assertEqual(len(ports), 5)

    def test_opening_one_fails_as_it_is_told_to(self) -> None:
        pair = Pair()
        pair.world.listen_errors["192.0.2.2", 1] = 13
        with self.assertRaises(CannotListenError) as caught:
            pair.there.listenTCP(1, Factory())
        self.assertEqual(caught.exception.socketError.errno, 13)

    def test_connections_outlive_their_port_but_not_if_it_closes_before_accepting(self) -> None:
        pair = Pair().connect()
        early = pair.client
        pair.client = pair.world.result_of(pair.dial())
        pair.world.ports.clear()
        pair.world.settle()
        self.assertEqual((early.lost, pair.client.lost), ([], [ConnectionLost]))

    def test_all_that_happens_to_ports_is_in_the_trace(self) -> None:
        pair = Pair()
        pair.world.result_of(pair.port.stopListening())
        self.assertEqual(
            pair.world.trace,
            [("there", "listens on port 10809"), ("there", "listens no longer on port 10809")],
        )


class DeathTests(SynchronousTestCase):
    """A machine whose process dies, or which fails."""

    def test_what_was_written_arrives_and_then_the_connection_ends(self) -> None:
        pair = Pair().connect()
        pair.say(b"last words")
        pair.here.die()
        pair.world.settle()
        self.assertEqual(pair.server.data, b"last words")
        self.assertEqual((pair.server.lost, pair.client.lost), ([ConnectionDone], []))

    def test_what_had_come_and_was_not_read_makes_it_a_reset(self) -> None:
        pair = Pair().connect()
        pair.server.transport.write(b"unread")
        pair.here.die()
        pair.world.settle()
        self.assertEqual(pair.server.lost, [ConnectionLost])
        self.assertEqual(pair.client.received, [])

    def test_nothing_of_it_goes_on(self) -> None:
        pair = Pair().connect()
        done: list[str] = []
        pair.here.callLater(1.0, done.append, "timer")
        pair.here.callFromThread(done.append, "job")
        pair.here.die()
        pair.here.callLater(1.0, done.append, "later")
        pair.here.callFromThread(done.append, "after")
        pair.say(b"from beyond")
        pair.world.advance(10)
        self.assertEqual((done, pair.server.data), ([], b""))
        with self.assertRaises(Died):
            pair.here.listenTCP(PORT, Factory.forProtocol(Recorder))

    def test_nobody_listens_there_any_more(self) -> None:
        pair = Pair().connect()
        pair.there.die()
        with self.assertRaises(Refused):
            pair.world.result_of(pair.dial())
        pair.world.settle()
        self.assertEqual(pair.client.lost, [ConnectionDone])
        heir = Machine(pair.world, "heir", "192.0.2.2")
        heir.listenTCP(PORT, Factory.forProtocol(pair._server))
        pair.connect()

    def test_a_machine_that_fails_leaves_the_other_end_in_the_dark(self) -> None:
        pair = Pair().connect()
        pair.server.transport.write(b"sent before")
        pair.there.die(silently=True)
        pair.say(b"to nobody")
        pair.world.advance(100)
        self.assertEqual((pair.client.data, pair.client.lost), (b"sent before", []))
        with self.assertRaises(TimedOut):
            pair.world.result_of(pair.dial())


class MomentTests(SynchronousTestCase):
    def test_something_can_be_let_happen_before_any_thing(self) -> None:
        for moment in range(1, 6):
            world = World()
            lane = Lane(world)
            order: list[int | str] = []
            for each in range(5):
                lane.add(lambda order=order, each=each: order.append(each))
            world.upon[moment] = lambda order=order: order.append("now")
            world.settle()
            self.assertEqual(order.index("now"), moment - 1)
            self.assertEqual(world.moments, 6)
