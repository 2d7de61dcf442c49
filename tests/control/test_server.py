from __future__ import annotations

import dataclasses
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.control.grammar import MAX_LINE
from flexmigrate.control.server import (
    ASK_SECONDS,
    MAX_CONNECTIONS,
    MAX_WAITING,
    ControlFactory,
    ControlProtocol,
)
from flexmigrate.errors import CommandError
from flexmigrate.migration.request import (
    Action,
    ConvergeChange,
    MirrorRequest,
    TLSConfig,
)
from flexmigrate.net.acl import AccessList
from flexmigrate.net.address import Address
from flexmigrate.telemetry.history import Summary
from flexmigrate.telemetry.status import Status

STATUS = Status(
    pid=1, size=512, has_control=True, clients_allowed=True, num_clients=0, is_mirroring=False
)
STATUS_LINE = (
    b"0: pid=1 size=512 has_control=true clients_allowed=true num_clients=0 is_mirroring=false\n"
)
SUMMARY = Summary(
    verdict="complete",
    reason=None,
    address="10.0.0.2:10809",
    duration=2.0,
    bytes_sent=1024,
    speed=512,
    passes=3,
    attempts=1,
    parked=0.25,
)
SUMMARY_TEXT = (
    b"verdict=complete address=10.0.0.2:10809 duration=2 bytes_sent=1024 speed=512 passes=3"
    b" attempts=1 parked=0.25"
)


class Recorder:
    """An operator that notes what it is told; what is asked for later fires when the test does."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.mirroring: Deferred[str] = Deferred()
        self.ending: Deferred[Summary] = Deferred()
        self.bug: Exception | None = None

    def status(self, export: str | None) -> Status:
        self.calls.append(("status", export))
        return STATUS

    def set_acl(self, entries: list[str]) -> None:
        AccessList(entries)
        self.calls.append(("acl", *entries))

    def mirror(self, request: MirrorRequest) -> Deferred[str]:
        self.calls.append(("mirror", request))
        return self.mirroring

    def wait(self, export: str | None) -> Deferred[Summary]:
        self.calls.append(("wait", export))
        return self.ending

    def set_max_bps(self, n: int, export: str | None) -> str:
        if n == 404:
            raise CommandError("Not mirroring")
        self.calls.append(("max_bps", n, export))
        return "updated"

    def set_converge(self, change: ConvergeChange, export: str | None) -> str:
        self.calls.append(("converge", change, export))
        return "updated"

    def break_mirror(self, export: str | None) -> str:
        if self.bug is not None:
            raise self.bug
        self.calls.append(("break", export))
        return "mirror stopped"


class ControlTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.operator = Recorder()
        self.protocol: ControlProtocol = ControlFactory(self.operator).buildProtocol(None)
        self.transport = StringTransport()
        self.protocol.makeConnection(self.transport)

    def say(self, data: bytes) -> None:
        self.protocol.dataReceived(data)

    def assert_answered(self, answer: bytes) -> None:
        self.assertEqual(self.transport.value(), answer)
        self.assertTrue(self.transport.disconnecting)

    def test_status(self) -> None:
        self.say(b"status\n\n")
        self.assert_answered(STATUS_LINE)

    def test_a_command_ended_by_the_end_of_input(self) -> None:
        self.say(b"status\n")
        self.assertEqual(self.transport.value(), b"")
        self.protocol.readConnectionLost()
        self.assert_answered(STATUS_LINE)

    def test_acl(self) -> None:
        self.say(b"acl\n10.0.0.0/8\n::1\n\n")
        self.assert_answered(b"0: updated\n")
        self.assertEqual(self.operator.calls, [("acl", "10.0.0.0/8", "::1")])

    def test_an_empty_acl(self) -> None:
        self.say(b"acl\n\n")
        self.assert_answered(b"0: updated\n")
        self.assertEqual(self.operator.calls, [("acl",)])

    def test_a_bad_acl_entry_is_named(self) -> None:
        self.say(b"acl\nlocalhost\n\n")
        self.assert_answered(b"1: bad spec: 'localhost' is neither an IP address nor a network\n")
        self.assertEqual(self.operator.calls, [])

    def test_mirror_is_answered_once_it_is_known_how_it_went(self) -> None:
        self.say(b"mirror\n10.0.0.2\n10809\nunlink\n\n")
        request = MirrorRequest(Address.tcp("10.0.0.2", 10809), Action.UNLINK)
        self.assertEqual(self.operator.calls, [("mirror", request)])
        self.assertEqual(self.transport.value(), b"")
        self.operator.mirroring.callback("Mirror started")
        self.assert_answered(b"0: Mirror started\n")

    def test_mirror_that_fails(self) -> None:
        self.say(b"mirror\n10.0.0.2\n10809\n\n")
        self.operator.mirroring.errback(CommandError("Mirror failed to connect"))
        self.assert_answered(b"1: Mirror failed to connect\n")

    def test_mirror_that_cannot_be_understood_is_not_started(self) -> None:
        self.say(b"mirror\n10.0.0.2\n10809\nproxy\n\n")
        self.assert_answered(b"1: action 'proxy' is not 'exit', 'unlink' or 'nothing'\n")
        self.assertEqual(self.operator.calls, [])

    def test_mirror_max_bps(self) -> None:
        self.say(b"mirror_max_bps\n1000\n\n")
        self.assert_answered(b"0: updated\n")
        self.assertEqual(self.operator.calls, [("max_bps", 1000, None)])

    def test_converge(self) -> None:
        self.say(b"converge\nconverge=force\nconverge-timeout=0\nexport=vm7\n\n")
        self.assert_answered(b"0: updated\n")
        change = ConvergeChange("force", timeout=0.0)
        self.assertEqual(self.operator.calls, [("converge", change, "vm7")])

    def test_converge_that_cannot_be_understood_changes_nothing(self) -> None:
        self.say(b"converge\nmax-downtime=soon\n\n")
        self.assert_answered(b"1: max-downtime: 'soon' is not a time, like 100ms, 2.5s or 1min\n")
        self.assertEqual(self.operator.calls, [])

    def test_a_refusal_that_is_raised(self) -> None:
        self.say(b"mirror_max_bps\n404\n\n")
        self.assert_answered(b"1: Not mirroring\n")

    def test_break(self) -> None:
        self.say(b"break\n\n")
        self.assertEqual(self.operator.calls, [("break", None)])
        self.assert_answered(b"0: mirror stopped\n")

    def test_which_export_a_command_is_about(self) -> None:
        for command, call in (
            (b"status\nexport=vm7\n\n", ("status", "vm7")),
            (b"break\nexport=\n\n", ("break", "")),
            (b"mirror_max_bps\n5\nexport=a=b\n\n", ("max_bps", 5, "a=b")),
        ):
            self.setUp()
            self.say(command)
            self.assertEqual(self.operator.calls, [call])
            self.assertTrue(self.transport.value().startswith(b"0: "))

    def test_mirror_with_settings(self) -> None:
        self.say(b"mirror\n10.0.0.2\n10809\nexport=vm7\ntls=on\ntls-certificates=/pki\n\n")
        request = MirrorRequest(
            Address.tcp("10.0.0.2", 10809),
            export="vm7",
            tls=TLSConfig("on", "/pki"),
        )
        self.assertEqual(self.operator.calls, [("mirror", request)])

    def test_a_setting_that_cannot_be_said_is_not_ignored(self) -> None:
        for command in (
            b"status\ntls=on\n\n",
            b"break\nexport=a\nexport=b\n\n",
            b"mirror\n10.0.0.2\n10809\nexports=a\n\n",
        ):
            self.setUp()
            self.say(command)
            self.assertIn(b"can't be said here", self.transport.value())
            self.assertEqual(self.operator.calls, [])

    def test_an_access_list_has_no_settings(self) -> None:
        self.say(b"acl\nexport=a\n\n")
        self.assertIn(b"1: bad spec: 'export=a'", self.transport.value())
        self.assertEqual(self.operator.calls, [])

    def test_an_unknown_command(self) -> None:
        self.say(b"fly\n\n")
        known = b"status, acl, mirror, mirror_max_bps, converge, break, wait"
        self.assert_answered(b"1: unknown command 'fly'; there are " + known + b"\n")

    def test_a_missing_command(self) -> None:
        self.say(b"\n")
        self.assert_answered(b"1: missing command\n")

    def test_arguments_where_there_are_none(self) -> None:
        self.say(b"break\nnow\n\n")
        self.assert_answered(b"1: break takes no arguments\n")
        self.assertEqual(self.operator.calls, [])

    def test_several_commands_are_answered_in_order(self) -> None:
        self.say(b"mirror\n10.0.0.2\n10809\n\nstatus\n\n")
        self.say(b"fly\n\n")
        self.assertEqual(len(self.operator.calls), 1)
        self.operator.mirroring.callback("Mirror started")
        answers = self.transport.value().splitlines(keepends=True)
        self.assertEqual(answers[:2], [b"0: Mirror started\n", STATUS_LINE])
        self.assertTrue(answers[2].startswith(b"1: unknown"))
        self.assertTrue(self.transport.disconnecting)

    def test_wait_is_answered_with_what_the_migration_came_to(self) -> None:
        self.say(b"wait\nexport=vm7\n\n")
        self.assertEqual(self.operator.calls, [("wait", "vm7")])
        self.assertEqual(self.transport.value(), b"")
        self.operator.ending.callback(SUMMARY)
        self.assert_answered(b"0: " + SUMMARY_TEXT + b"\n")

    def test_wait_for_one_that_does_not_succeed(self) -> None:
        self.say(b"wait\n\n")
        self.operator.ending.callback(
            dataclasses.replace(SUMMARY, verdict="broken", reason="not today")
        )
        text = SUMMARY_TEXT.replace(b"complete", b"broken reason=not%20today")
        self.assert_answered(b"1: " + text + b"\n")

    def test_mirror_and_wait_on_one_connection_are_about_the_same_migration(self) -> None:
        self.say(b"mirror\n10.0.0.2\n10809\n\nwait\n\n")
        self.operator.mirroring.callback("Mirror started")
        self.assertEqual(self.transport.value(), b"0: Mirror started\n")
        self.operator.ending.callback(SUMMARY)
        self.assertTrue(self.transport.value().endswith(b"\n0: " + SUMMARY_TEXT + b"\n"))

    def test_who_goes_away_waits_no_longer(self) -> None:
        gone: list[Deferred[Summary]] = []
        self.operator.ending = Deferred(gone.append)
        self.say(b"wait\n\n")
        self.protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(gone, [self.operator.ending])

    def test_nothing_is_done_after_the_answer(self) -> None:
        self.say(b"status\n\n")
        self.say(b"break\n\n")
        self.assertEqual(self.operator.calls, [("status", None)])

    def test_who_leaves_without_a_command_is_not_answered(self) -> None:
        self.protocol.readConnectionLost()
        self.assert_answered(b"")

    def test_who_half_closes_still_gets_the_answer(self) -> None:
        self.say(b"mirror\n10.0.0.2\n10809\n\n")
        self.protocol.readConnectionLost()
        self.assertFalse(self.transport.disconnecting)
        self.operator.mirroring.callback("Mirror started")
        self.assert_answered(b"0: Mirror started\n")

    def test_what_was_asked_for_goes_on_if_the_asker_has_gone_and_nothing_follows(self) -> None:
        self.say(b"mirror\n10.0.0.2\n10809\n\nbreak\n\n")
        self.protocol.connectionLost(Failure(ConnectionDone()))
        self.operator.mirroring.callback("Mirror started")
        self.assertEqual([name for name, *_ in self.operator.calls], ["mirror"])
        self.assertEqual(self.transport.value(), b"")

    def test_a_line_without_end_costs_the_connection(self) -> None:
        self.say(b"x" * (MAX_LINE + 1))
        self.assert_answered(f"1: a line has more than {MAX_LINE} bytes\n".encode())

    def test_commands_do_not_pile_up_behind_one_that_takes_its_time(self) -> None:
        self.say(b"mirror\n10.0.0.2\n10809\n\n")
        self.say(b"status\n\n" * MAX_WAITING)
        self.assertEqual(self.transport.value(), b"")
        self.say(b"status\n\n")
        self.assert_answered(f"1: more than {MAX_WAITING} commands are waiting\n".encode())
        self.operator.mirroring.callback("Mirror started")
        self.assertEqual([name for name, *_ in self.operator.calls], ["mirror"])

    def test_a_bug_is_logged_and_answered_without_its_details(self) -> None:
        self.operator.bug = ZeroDivisionError("a secret")
        self.say(b"break\n\n")
        self.assert_answered(b"1: internal error; the server's log has the details\n")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class FinishTests(SynchronousTestCase):
    """The end of the process: nobody is left without the answer that there is."""

    def setUp(self) -> None:
        self.operator = Recorder()
        self.factory = ControlFactory(self.operator)

    def connect(self, said: bytes = b"") -> tuple[ControlProtocol, StringTransport]:
        protocol, transport = self.factory.buildProtocol(None), StringTransport()
        protocol.makeConnection(transport)
        protocol.dataReceived(said)
        return protocol, transport

    def lose(self, protocol: ControlProtocol) -> None:
        protocol.connectionLost(Failure(ConnectionDone()))

    def test_with_nobody_there(self) -> None:
        self.successResultOf(self.factory.finish())

    def test_who_has_asked_for_nothing_is_let_go(self) -> None:
        protocol, transport = self.connect()
        finished = self.factory.finish()
        self.assertTrue(transport.disconnecting)
        self.assertNoResult(finished)
        self.lose(protocol)
        self.successResultOf(finished)

    def test_an_answer_is_waited_for_and_its_sending_too(self) -> None:
        protocol, transport = self.connect(b"wait\n\n")
        finished = self.factory.finish()
        self.assertFalse(transport.disconnecting)
        self.operator.ending.callback(SUMMARY)
        self.assertTrue(transport.disconnecting)
        self.assertNoResult(finished)
        self.lose(protocol)
        self.successResultOf(finished)

    def test_until_the_caller_has_lost_patience(self) -> None:
        protocol, _ = self.connect(b"wait\n\n")
        finished = self.factory.finish()
        finished.cancel()
        self.failureResultOf(finished)
        self.lose(protocol)


class CrowdTests(SynchronousTestCase):
    """Those who have connected and ask for nothing are in nobody's way."""

    def setUp(self) -> None:
        self.operator = Recorder()
        self.clock = Clock()
        self.factory = ControlFactory(self.operator, self.clock)

    def connect(self, said: bytes = b"") -> Any:
        protocol = self.factory.buildProtocol(None)
        if protocol is None:
            return None
        transport = StringTransport()
        transport.abortConnection = lambda: protocol.connectionLost(Failure(ConnectionDone()))
        protocol.makeConnection(transport)
        protocol.dataReceived(said)
        return protocol

    def test_their_time_is_limited_whatever_they_say_meanwhile(self) -> None:
        slow = self.connect(b"sta")
        self.clock.advance(ASK_SECONDS - 1)
        slow.dataReceived(b"tus\n")
        self.assertEqual(len(self.factory._connections), 1)
        self.clock.advance(1)
        self.assertEqual(len(self.factory._connections), 0)
        self.assertEqual(self.operator.calls, [])

    def test_who_waits_for_an_answer_may_do_so_for_long(self) -> None:
        waiting = self.connect(b"wait\n\n")
        self.clock.advance(ASK_SECONDS * 100)
        self.assertIn(waiting, self.factory._connections)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_oldest_that_has_asked_for_nothing_makes_room(self) -> None:
        waiting = self.connect(b"wait\n\n")
        idle = [self.connect() for _ in range(MAX_CONNECTIONS - 1)]
        late = self.connect(b"status\n\n")
        self.assertEqual(late.transport.value(), STATUS_LINE)
        self.assertIn(waiting, self.factory._connections)
        self.assertNotIn(idle[0], self.factory._connections)
        self.assertIn(idle[1], self.factory._connections)

    def test_where_all_wait_for_answers_one_more_is_refused(self) -> None:
        for _ in range(MAX_CONNECTIONS):
            self.connect(b"wait\n\n")
        self.assertIsNone(self.connect())
