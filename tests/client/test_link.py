from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from flexmigrate.client.connection import NBDClientProtocol
from flexmigrate.errors import (
    Broken,
    ConnectionGone,
    LocalProtocolError,
    Rejected,
    RemoteProtocolError,
    RequestFailed,
)
from flexmigrate.net.interfaces import IBufferedProtocol
from flexmigrate.wire.agreement import TLSMode
from flexmigrate.wire.client_handshake import ClientOptions
from support.served_client import DISC, ServedClient

OLDSTYLE_HELLO = bytes.fromhex("4e42444d41474943 0000420281861253 0000000000010000 00000000")
OLDSTYLE_HELLO += bytes(124)


def outcomes(deferreds: list[Deferred]) -> list[list]:
    """Collect what each Deferred fires with, every time it does."""
    collected: list[list] = []
    for deferred in deferreds:
        results: list = []
        deferred.addBoth(results.append)
        collected.append(results)
    return collected


def connected(wish: ClientOptions | None = None, tls: object = None) -> NBDClientProtocol:
    client = NBDClientProtocol(wish or ClientOptions(), Clock(), tls=tls)
    client.makeConnection(StringTransport())
    return client


class Interfaces(SynchronousTestCase):
    def test_are_provided(self) -> None:
        client = connected()
        verifyObject(IBufferedProtocol, client)
        verifyObject(IPushProducer, client)


class Negotiation(SynchronousTestCase):
    def test_an_oldstyle_server_is_recognised_byte_by_byte(self) -> None:
        client = connected()
        for byte in OLDSTYLE_HELLO[:-1]:
            client.dataReceived(bytes([byte]))
        self.assertNoResult(client.ready)
        client.dataReceived(OLDSTYLE_HELLO[-1:])
        self.assertIs(self.successResultOf(client.ready), client)
        self.assertEqual(client.size, 65536)

    def test_bytes_may_come_through_the_clients_own_buffer(self) -> None:
        client = connected()
        client.get_buffer()[: len(OLDSTYLE_HELLO)] = OLDSTYLE_HELLO
        client.buffer_updated(len(OLDSTYLE_HELLO))
        self.assertIs(self.successResultOf(client.ready), client)

    def test_a_server_that_hangs_up_before_a_word_has_rejected_us(self) -> None:
        for reason in (ConnectionDone(), ConnectionLost()):
            client = connected()
            client.connectionLost(Failure(reason))
            self.failureResultOf(client.ready, Rejected)
            self.assertIsInstance(client.failure, Rejected)

    def test_a_server_that_hangs_up_after_a_word_has_not(self) -> None:
        client = connected()
        client.dataReceived(OLDSTYLE_HELLO[:1])
        client.connectionLost(Failure(ConnectionDone()))
        self.failureResultOf(client.ready, RemoteProtocolError)

    def test_what_is_no_nbd_server_is_left_at_once(self) -> None:
        client = connected()
        client.dataReceived(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n")
        self.failureResultOf(client.ready, RemoteProtocolError)
        self.assertTrue(client.transport.disconnected)

    def test_cancelling_ends_the_connection(self) -> None:
        client = connected()
        client.ready.cancel()
        self.failureResultOf(client.ready, ConnectionGone)
        self.assertTrue(client.transport.disconnected)

    def test_bytes_behind_the_hello_are_an_answer_that_nobody_asked_for(self) -> None:
        client = connected()
        client.dataReceived(OLDSTYLE_HELLO + b"\0")
        self.failureResultOf(client.ready, RemoteProtocolError)
        self.assertTrue(client.transport.disconnected)
        self.failureResultOf(client.flush(), LocalProtocolError, ConnectionGone)

    def test_disconnecting_before_its_end_gives_the_connection_up(self) -> None:
        client = connected()
        self.failureResultOf(client.disconnect(), ConnectionGone)
        self.failureResultOf(client.ready, ConnectionGone)
        self.assertTrue(client.transport.disconnected)


class TLSTransport(StringTransport):
    contexts: tuple = ()

    def startTLS(self, context: object) -> None:
        self.clear()
        self.contexts = (*self.contexts, context)


class StartTLS(SynchronousTestCase):
    def negotiate(self, tls: object) -> NBDClientProtocol:
        client = NBDClientProtocol(ClientOptions(tls=TLSMode.REQUIRE), Clock(), tls=tls)
        client.makeConnection(TLSTransport())
        client.dataReceived(b"NBDMAGICIHAVEOPT\0\x03")
        client.dataReceived(bytes.fromhex("0003e889045565a9 00000005 00000001 00000000"))
        return client

    def test_is_done_with_what_the_caller_gave_and_negotiation_goes_on(self) -> None:
        context = object()
        client = self.negotiate(context)
        self.assertEqual(client.transport.contexts, (context,))
        self.assertTrue(client.transport.value().startswith(b"IHAVEOPT"))
        self.assertNoResult(client.ready)

    def test_without_anything_given_is_our_own_mistake(self) -> None:
        client = self.negotiate(None)
        self.failureResultOf(client.ready, LocalProtocolError)
        self.assertTrue(client.transport.disconnected)


class RequestsInFlight(SynchronousTestCase):
    def setUp(self) -> None:
        self.served = ServedClient()
        self.client = self.served.client

    def ask(self, count: int = 3) -> tuple[list[list], list]:
        asked = [self.client.trim(number * 512, 512) for number in range(count)]
        return outcomes(asked), self.served.requests()

    def test_are_answered_in_any_order(self) -> None:
        results, (first, second, third) = self.ask()
        self.assertEqual(self.client.requests_in_flight, 3)
        for request in (third, first, second):
            self.served.ok(request)
        self.assertEqual(results, [[None], [None], [None]])
        self.assertEqual(self.client.requests_in_flight, 0)

    def test_fail_by_themselves_where_the_server_says_so(self) -> None:
        results, (first, second, third) = self.ask()
        self.served.error(second, 28)
        self.served.ok(first)
        self.served.ok(third)
        error = results[1][0].value
        self.assertIsInstance(error, RequestFailed)
        self.assertEqual(error.errno, 28)
        self.assertEqual((results[0], results[2]), ([None], [None]))

    def test_each_fail_once_when_the_connection_is_lost(self) -> None:
        results, (first, *_) = self.ask()
        self.served.ok(first)
        self.served.lose(ConnectionLost("gone"))
        self.served.lose(ConnectionLost("again"))
        self.assertEqual(results[0], [None])
        for result in results[1:]:
            self.assertEqual(len(result), 1)
            result[0].trap(ConnectionGone)
            self.assertIn("gone", str(result[0].value))

    def test_each_fail_once_with_the_reason_given_to_abort(self) -> None:
        results, _ = self.ask()
        reason = Broken("the operator said so")
        self.client.abort(reason)
        self.client.abort(Broken("again"))
        self.served.lose()
        self.assertEqual(
            [[failure.value for failure in result] for result in results], [[reason]] * 3
        )
        self.assertIs(self.client.failure, reason)
        self.assertTrue(self.served.transport.disconnected)

    def test_fail_when_the_server_breaks_the_protocol_but_what_was_answered_stays(self) -> None:
        results, (first, *_) = self.ask()
        self.served.error(first, 5)
        self.served.reply(b"\0" * 64)
        self.assertEqual(results[0][0].type, RequestFailed)
        for result in results[1:]:
            self.assertEqual([failure.type for failure in result], [RemoteProtocolError])
        self.assertTrue(self.served.transport.disconnected)

    def test_may_be_made_from_the_callback_of_another(self) -> None:
        asked = self.client.trim(0, 512)
        asked.addCallback(lambda _: self.client.trim(512, 512))
        self.served.ok(self.served.request())
        self.served.ok(self.served.request())
        self.assertIsNone(self.successResultOf(asked))

    def test_answered_in_the_same_bytes_as_one_whose_callback_aborts_fail_once(self) -> None:
        served = ServedClient(oldstyle=True)
        first, second = served.client.flush(), served.client.flush()
        reason = Broken("enough")
        first.addCallback(lambda _: served.client.abort(reason))
        one, two = served.requests()
        replies: list[bytes] = []
        served.reply, deliver = replies.append, served.reply
        served.ok(one)
        served.ok(two)
        deliver(b"".join(replies))
        self.assertIs(self.failureResultOf(second, Broken).value, reason)

    def test_are_not_accepted_once_the_connection_is_over(self) -> None:
        self.served.lose()
        self.failureResultOf(self.client.trim(0, 512), ConnectionGone)
        self.failureResultOf(self.client.when_writable(), ConnectionGone)
        self.assertEqual(self.served.requests(), [])

    def test_that_are_cancelled_do_not_disturb_the_others(self) -> None:
        one, two = self.client.trim(0, 512), self.client.trim(512, 512)
        first, second = self.served.requests()
        one.cancel()
        self.served.ok(first)
        self.served.ok(second)
        self.failureResultOf(one, CancelledError)
        self.assertIsNone(self.successResultOf(two))

    def test_are_not_accepted_once_the_server_is_shutting_down(self) -> None:
        results, (first, second, third) = self.ask()
        self.served.error(first, 108)
        self.failureResultOf(self.client.trim(0, 512), ConnectionGone)
        self.served.ok(second)
        self.served.ok(third)
        self.assertEqual(results[1:], [[None], [None]])
        # DISC may hand over an image: nobody says it but who was told to.
        self.assertEqual(self.served.requests(), [])
        self.client.disconnect()
        self.assertEqual(self.served.request().command, DISC)


class Disconnecting(SynchronousTestCase):
    def setUp(self) -> None:
        self.served = ServedClient()
        self.client = self.served.client

    def test_waits_for_the_last_answer_and_accepts_no_more(self) -> None:
        asked = self.client.trim(0, 512)
        request = self.served.request()
        goodbye = self.client.disconnect()
        self.failureResultOf(self.client.trim(0, 512), ConnectionGone)
        self.assertEqual(self.served.requests(), [])
        self.served.ok(request)
        self.assertIsNone(self.successResultOf(asked))
        disc = self.served.request()
        self.assertEqual((disc.command, disc.flags, disc.offset, disc.length), (DISC, 0, 0, 0))
        self.assertNoResult(goodbye)
        self.served.lose()
        self.assertIsNone(self.successResultOf(goodbye))
        self.assertIsNone(self.client.failure)
        self.assertIsNone(self.successResultOf(self.client.disconnect()))

    def test_fails_if_the_connection_is_reset(self) -> None:
        goodbye = self.client.disconnect()
        self.served.lose(ConnectionLost())
        self.failureResultOf(goodbye, ConnectionGone)
        self.failureResultOf(self.client.disconnect(), ConnectionGone)

    def test_fails_if_the_server_closes_while_disc_has_not_left_us(self) -> None:
        self.served.transport.producer.pauseProducing()
        goodbye = self.client.disconnect()
        self.served.lose()
        self.failureResultOf(goodbye, ConnectionGone)

    def test_succeeds_if_disc_left_late(self) -> None:
        producer = self.served.transport.producer
        producer.pauseProducing()
        goodbye = self.client.disconnect()
        producer.resumeProducing()
        producer.stopProducing()  # as transports do before they tell of the end
        self.served.lose()
        self.assertIsNone(self.successResultOf(goodbye))

    def test_fails_if_the_server_closes_before_it_could_be_said(self) -> None:
        asked = self.client.trim(0, 512)
        goodbye = self.client.disconnect()
        self.served.lose()
        self.failureResultOf(asked, ConnectionGone)
        self.failureResultOf(goodbye, ConnectionGone)

    def test_fails_if_the_server_says_anything_but_goodbye(self) -> None:
        goodbye = self.client.disconnect()
        self.served.reply(b"\0" * 32)
        self.failureResultOf(goodbye, RemoteProtocolError)

    def test_twice_says_it_once(self) -> None:
        goodbyes = [self.client.disconnect(), self.client.disconnect()]
        self.assertEqual(len(self.served.requests()), 1)
        self.served.lose()
        for goodbye in goodbyes:
            self.assertIsNone(self.successResultOf(goodbye))

    def test_is_not_said_if_the_last_requests_errback_aborts(self) -> None:
        asked = self.client.trim(0, 512)
        request = self.served.request()
        goodbye = self.client.disconnect()
        asked.addErrback(lambda _: self.client.abort(Broken("a write failed")))
        self.served.error(request, 5)
        self.assertEqual(self.served.requests(), [])
        self.failureResultOf(goodbye, Broken)

    def test_cancelled_ends_the_connection(self) -> None:
        goodbye = self.client.disconnect()
        goodbye.cancel()
        self.failureResultOf(goodbye, ConnectionGone)
        self.assertTrue(self.served.transport.disconnected)

    def test_and_every_other_end_is_told_to_who_waits_for_the_end(self) -> None:
        closed = self.client.when_closed()
        self.assertNoResult(closed)
        self.served.lose(ConnectionLost())
        self.assertIsNone(self.successResultOf(closed))
        self.assertIsNone(self.successResultOf(self.client.when_closed()))
        self.assertIsInstance(self.client.failure, ConnectionGone)


class BackPressure(SynchronousTestCase):
    def setUp(self) -> None:
        self.served = ServedClient()
        self.client = self.served.client
        self.producer = self.served.transport.producer

    def test_is_told_to_who_waits_until_it_is_over(self) -> None:
        self.assertTrue(self.client.writable)
        self.assertIsNone(self.successResultOf(self.client.when_writable()))
        self.producer.pauseProducing()
        self.assertFalse(self.client.writable)
        waiting = self.client.when_writable()
        self.assertNoResult(waiting)
        self.producer.resumeProducing()
        self.assertTrue(self.client.writable)
        self.assertIsNone(self.successResultOf(waiting))

    def test_ends_with_the_connection(self) -> None:
        self.producer.pauseProducing()
        waiting = self.client.when_writable()
        self.producer.stopProducing()
        self.served.lose(ConnectionLost())
        self.failureResultOf(waiting, ConnectionGone)
        self.producer.resumeProducing()
        self.assertFalse(self.client.writable)


class Progress(SynchronousTestCase):
    def test_is_noted_when_bytes_move_and_when_an_idle_connection_is_asked(self) -> None:
        served = ServedClient()
        client, clock = served.client, served.clock
        clock.advance(100)
        client.trim(0, 512)
        self.assertEqual(client.last_progress, 100)
        clock.advance(10)
        client.trim(0, 512)  # asking more of a server that is silent is no progress
        self.assertEqual(client.last_progress, 100)
        first, _ = served.requests()
        served.ok(first)
        self.assertEqual(client.last_progress, 110)
        clock.advance(10)
        served.transport.producer.pauseProducing()
        self.assertEqual(client.last_progress, 110)
        served.transport.producer.resumeProducing()
        self.assertEqual(client.last_progress, 120)


@given(st.booleans(), st.lists(st.binary(max_size=100), max_size=5))
def test_whatever_a_server_says_each_request_is_answered_once(
    extended: bool, garbage: list[bytes]
) -> None:
    served = ServedClient(wish=ClientOptions(extended=extended))
    results = outcomes([served.client.trim(0, 512), served.client.read(0, 1 << 20)])
    first, _ = served.requests()
    served.ok(first)
    for data in garbage:
        served.reply(data)
    served.lose()
    assert results[0] == [None]
    (failure,) = results[1]
    assert failure.check(ConnectionGone, RemoteProtocolError)
