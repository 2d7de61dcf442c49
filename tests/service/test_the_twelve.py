"""The twelve things that the system must do, each shown with real processes.

Where a thing has more cases than processes can be brought into (the order of two events, threads),
they are gone through in memory beside the room that decides: `test_serving` here, `test_log`.
"""

from __future__ import annotations

import re
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import raw_nbd
from support.images import MIB, assert_same, difference
from support.operator import ask, status, wait_until
from support.processes import Child
from support.raw_nbd import DISC, READ, WRITE, RawClient, receive
from support.relay import Relay
from support.scripted_destination import Sender
from support.servers import SIZE, Servers, stop

# Whether under twistd, and how it is told to end: each signal, and SIGTERM under both runners.
ENDINGS = [
    (False, signal.SIGTERM),
    (True, signal.SIGTERM),
    (False, signal.SIGINT),
    (True, signal.SIGQUIT),
]


class ByHand:
    """A destination that the test plays itself, so that it can look around at each step."""

    def __init__(self, servers: Servers) -> None:
        self.servers = servers
        self._port = socket.create_server(("127.0.0.1", 0))
        self._port.settimeout(60)
        servers.send_to("127.0.0.1", self._port.getsockname()[1])

    def __enter__(self) -> ByHand:
        return self

    def __exit__(self, *_: object) -> None:
        self._port.close()

    def mirror(self, *more: str) -> Sender:
        """Have the source migrate to here; return its connection after the hello."""
        asked = self.servers.children.flexmigrate(
            "mirror", *self.servers.place, "--sock", str(self.servers.source_sock), *more
        )
        sock, _ = self._port.accept()
        sock.settimeout(60)
        sender = Sender(sock, self.servers.copy, "newstyle")
        sender.say_hello()
        asked.expect_exit(0)
        return sender


@pytest.fixture
def by_hand(servers: Servers) -> Iterator[ByHand]:
    with ByHand(servers) as destination:
        yield destination


def send_everything(client: RawClient, image: Path) -> None:
    assert client.write(0, image.read_bytes()) == 0


class Test01SigtermDuringAMigrationEndsWithANonZeroStatus:
    @pytest.mark.parametrize(("twistd", "number"), ENDINGS)
    def test_at_the_source(self, servers: Servers, twistd: bool, number: signal.Signals) -> None:
        source, destination = servers.serve(twistd=twistd), servers.listen()
        servers.start_mirroring_slowly("--unlink")
        source.send(number)
        source.expect_exit(1)
        assert servers.image.exists()
        assert servers.marker.exists()
        stop(destination, status=1)

    @pytest.mark.parametrize(("twistd", "number"), ENDINGS)
    def test_at_the_destination(
        self, servers: Servers, twistd: bool, number: signal.Signals
    ) -> None:
        source, destination = servers.serve(), servers.listen(twistd=twistd)
        servers.start_mirroring_slowly()
        destination.send(number)
        destination.expect_exit(1)
        assert servers.marker.exists()
        assert source.running
        stop(source, status=1)  # it would have tried again

    def test_at_a_destination_that_nobody_has_come_to(self, servers: Servers, twistd: bool) -> None:
        stop(servers.listen(twistd=twistd), status=1)
        assert servers.marker.exists()

    def test_without_a_migration_the_status_is_zero(self, servers: Servers, twistd: bool) -> None:
        stop(servers.serve(twistd=twistd), status=0)

    def test_after_a_migration_that_was_broken_off_it_is_zero_again(self, servers: Servers) -> None:
        source = servers.serve()
        servers.listen()
        servers.start_mirroring_slowly()
        assert ask(servers.source_sock, "break") == (0, "mirror stopped")
        stop(source, status=0)


class Test02NoMigrationCanStartOnceSigtermHasFired:
    @pytest.mark.parametrize("head_start", [0.0, 0.002, 0.01])
    def test_the_answer_and_the_exit_status_agree_however_the_two_race(
        self, servers: Servers, twistd: bool, head_start: float
    ) -> None:
        source, destination = servers.serve(twistd=twistd), servers.listen()
        address, port = servers.place[1], servers.place[3]
        command = ("mirror", address, port, "exit", "0.0.0.0", str(MIB))  # slow: it can't be done
        with socket.socket(socket.AF_UNIX) as operator:
            operator.settimeout(60)
            operator.connect(str(servers.source_sock))
            operator.sendall("".join(f"{line}\n" for line in (*command, "")).encode())
            time.sleep(head_start)
            source.send(signal.SIGTERM)
            answer = operator.makefile().read()
        ended = source.wait()
        began = answer == "0: Mirror started\n" or any("begins" in line for line in source.lines)
        assert ended == (1 if began else 0), source.story()
        stop(destination, status=1)

    def test_what_is_asked_for_after_it_is_refused_or_not_answered(self, servers: Servers) -> None:
        source = servers.serve()
        destination = servers.listen()
        source.send(signal.SIGTERM)
        source.wait_for("received SIGTERM")
        assert servers.mirror().returncode == 1
        source.expect_exit(0)
        assert not any("connected from" in line for line in destination.lines)


class Test03AllDataThenDiscAndNothingMoreIsASuccessfulHandover:
    def test_at_the_destination(self, servers: Servers, twistd: bool) -> None:
        destination = servers.listen(twistd=twistd)
        sender = servers.client(destination)
        send_everything(sender, servers.image)
        sender.say_goodbye()  # no flush: not every sender knows it
        destination.expect_exit(0)
        servers.is_copied()

    def test_at_the_source(self, servers: Servers, by_hand: ByHand, twistd: bool) -> None:
        source = servers.serve(twistd=twistd)
        sender = by_hand.mirror()
        sender.serve_until_disc()
        sender.sock.shutdown(socket.SHUT_WR)
        assert sender.sock.recv(1) == b""
        sender.close()
        source.expect_exit(0)
        assert_same(servers.image, servers.copy)

    def test_between_the_two(self, servers: Servers, twistd: bool) -> None:
        servers.try_again(twistd)


class Test04WithUnlinkTheFileIsGoneBeforeDiscIsSent:
    def test_it_is_there_until_all_is_flushed_and_gone_when_disc_comes(
        self, servers: Servers, by_hand: ByHand, twistd: bool
    ) -> None:
        source = servers.serve(twistd=twistd)
        original = servers.image.read_bytes()
        sender = by_hand.mirror("--unlink")
        seen = []
        while (request := sender.request()).command != DISC:
            seen.append(servers.image.exists())
            sender.answer(request, sender.obey(request))
        assert all(seen)
        assert not servers.image.exists()
        sender.close()
        source.expect_exit(0)
        assert servers.copy.read_bytes() == original

    def test_without_unlink_it_stays(self, servers: Servers) -> None:
        servers.try_again()
        assert servers.image.exists()


class Test05ASuccessEndsWithStatusZeroAndNoRebindUnlessAskedFor:
    def test_both_processes_end_and_nobody_listens_any_more(
        self, servers: Servers, twistd: bool
    ) -> None:
        source, destination = servers.serve(twistd=twistd), servers.listen(twistd=twistd)
        servers.start_mirroring()
        servers.complete(source, destination)
        for server in (source, destination):
            with pytest.raises(ConnectionRefusedError):
                RawClient.to(*server.listening())
        assert not servers.destination_sock.exists()

    def test_if_asked_for_the_destination_serves_and_later_ends_with_zero_too(
        self, servers: Servers, twistd: bool
    ) -> None:
        source = servers.serve(twistd=twistd)
        path = servers.folder / "nbd"
        destination = servers.listen("--rebind-addr", str(path), twistd=twistd)
        servers.start_mirroring()
        source.expect_exit(0)
        wait_until(servers.destination_sock, listening_phase="serving")
        servers.is_copied()
        stop(destination, status=0)


class Test06RebindRetriesOnceASecondWhileTheCauseMayPass:
    def test_an_address_that_is_taken_and_freed_later(self, servers: Servers) -> None:
        source = servers.serve()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            destination = servers.listen("--rebind-port", str(port))
            servers.start_mirroring()
            source.expect_exit(0)
            # That a second passes between two, tests/service/test_rebind.py checks by a clock.
            seen = wait_until(servers.destination_sock, rebind_attempts="3")
            assert seen["listening_phase"] == "rebinding"
            assert "in%20use" in seen["rebind_error"]
            assert seen["has_control"] == "true"
            servers.is_copied()  # the data is safe all the while
            assert destination.running
        wait_until(servers.destination_sock, listening_phase="serving")
        client = RawClient.to("127.0.0.1", port)
        assert client.read(0, SIZE) == servers.image.read_bytes()
        client.say_goodbye()
        stop(destination, status=0)

    def test_what_can_never_work_is_given_up_at_once(self, servers: Servers, twistd: bool) -> None:
        source = servers.serve(twistd=twistd)
        nowhere = servers.folder / "no such folder" / "socket"
        destination = servers.listen("--rebind-addr", str(nowhere), twistd=twistd)
        servers.start_mirroring()
        source.expect_exit(0)
        destination.wait_for(f"can't serve on {re.escape(str(nowhere))}")
        # The supervisor can start a server: the image is here.
        servers.complete(source, destination)

    def test_sigterm_while_it_waits_ends_it_with_zero_since_the_image_is_here(
        self, servers: Servers, twistd: bool
    ) -> None:
        source = servers.serve()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            destination = servers.listen(
                "--rebind-port", str(taken.getsockname()[1]), twistd=twistd
            )
            servers.start_mirroring()
            source.expect_exit(0)
            wait_until(servers.destination_sock, listening_phase="rebinding")
            stop(destination, status=0)
        servers.is_copied()


LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (debug|info|warn|error|critical) *"
    r"[\w.#-]+( \[[^]]+\])?: \S.*"
)


class Test07LogLinesNeverInterleaveOrOverlap:
    def test_every_line_is_whole_while_clients_come_and_go_and_threads_work(
        self, servers: Servers, twistd: bool
    ) -> None:
        source = servers.serve("--verbose", twistd=twistd)
        for _ in range(20):
            clients = [servers.client(source) for _ in range(10)]
            for client in clients:
                client.send(WRITE, 0, 4096, bytes(4096), flags=raw_nbd.FUA)
                client.send(99)
                client.close()
        # An export's name may be anything, also what looks like a line of the log.
        with pytest.raises(raw_nbd.ProtocolViolation):
            RawClient.to(*source.listening(), export="x\n2026-01-01T00:00:00.000Z info  y: z")
        stop(source)
        assert [line for line in source.lines if not LINE.fullmatch(line)] == []
        assert len(source.lines) > 200


class Test08AClientThatGoesAwayInTheMiddleOfALargeReadHarmsNobody:
    @pytest.mark.parametrize("reset", [True, False])
    def test_others_go_on_and_nothing_is_left_of_it(self, servers: Servers, reset: bool) -> None:
        source = servers.serve()
        other = servers.client(source)
        descriptors = Path(f"/proc/{source.pid}/fd")
        before = 0
        for number in range(11):
            if number == 1:
                # What a server opens for the first client that goes away, it keeps.
                wait_until(servers.source_sock, num_clients="1")
                before = len(list(descriptors.iterdir()))
            client = servers.client(source)
            for _ in range(8):
                client.send(READ, 0, SIZE)
            receive(client.sock, 100_000)
            if reset:
                linger = struct.pack("ii", 1, 0)
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            client.close()
            assert other.read(MIB, 4096) == servers.image.read_bytes()[MIB : MIB + 4096]
        wait_until(servers.source_sock, num_clients="1")
        # One more may be the operator's, who has just asked.
        assert len(list(descriptors.iterdir())) <= before + 1
        assert not any("Traceback" in line for line in source.lines)
        # And it can still be migrated: nothing waits for requests of the lost ones.
        destination = servers.listen()
        servers.start_mirroring()
        servers.complete(source, destination)


class Test09ASenderThatDisconnectsBeforeDiscMakesTheDestinationStartOver:
    def test_what_it_sent_does_not_count(self, servers: Servers) -> None:
        destination = servers.listen()
        data = servers.image.read_bytes()
        half = SIZE // 2
        for offset in (0, half):
            sender = servers.client(destination)
            assert sender.write(offset, data[offset : offset + half]) == 0
            assert sender.flush() == 0
            sender.close()
            seen = wait_until(servers.destination_sock, listening_phase="waiting")
            assert seen["covered_bytes"] == "0"
        # Together they sent everything; a third that sends half has not.
        sender = servers.client(destination)
        assert sender.write(0, data[:half]) == 0
        sender.say_goodbye()
        wait_until(servers.destination_sock, listening_phase="waiting")
        assert servers.marker.exists()
        stop(destination, status=1)

    def test_a_source_whose_connection_was_cut_sends_everything_again(
        self, servers: Servers
    ) -> None:
        source, destination = servers.serve(), servers.listen()
        with Relay("127.0.0.1", int(servers.place[3])) as relay:
            servers.send_to("127.0.0.1", relay.port)
            relay.cut_after(SIZE * 3 // 4)
            # By a session, it would be compared what is there: see test_verifying.
            servers.start_mirroring("--handover", "plain")
            servers.complete(source, destination)
            assert relay.connections == 2
            assert relay.forwarded > SIZE * 7 // 4


class Test10AnErrorPathFreesTheLocksThatItsOwnTaskHoldsAndNoOther:
    def test_refused_commands_leave_the_running_migration_its_locks(
        self, servers: Servers, by_hand: ByHand, twistd: bool
    ) -> None:
        source = servers.serve(twistd=twistd)
        sender = by_hand.mirror()
        request = sender.request()
        for _ in range(3):
            assert ask(servers.source_sock, "mirror", "127.0.0.1", "1") == (
                1,
                "mirror already running",
            )
        sender.answer(request, sender.obey(request))
        sender.serve_until_disc()
        # The handover holds the migration lock until the destination's end has come.
        with socket.socket(socket.AF_UNIX) as second:
            second.settimeout(60)
            second.connect(str(servers.source_sock))
            second.sendall(b"mirror\n127.0.0.1\n1\n\n")
            assert status(servers.source_sock)["is_mirroring"] == "true"
            assert ask(servers.source_sock, "break")[0] == 1
            source.send(signal.SIGTERM)
            source.wait_for("received SIGTERM")
            assert source.running
            sender.close()
            answer = second.makefile().read()
        assert not answer.startswith("0"), answer
        source.expect_exit(0)  # it was given away: SIGTERM came after the fact
        assert_same(servers.image, servers.copy)

    def test_a_migration_that_failed_leaves_none_behind(self, servers: Servers, port: int) -> None:
        source = servers.serve()
        servers.send_to("127.0.0.1", port)
        for _ in range(3):
            assert b"Mirror failed to connect" in servers.mirror().stderr
        destination = servers.listen()
        servers.start_mirroring()
        servers.complete(source, destination)

    def test_of_two_servers_that_want_an_image_the_second_leaves_the_first_its_lock(
        self, servers: Servers
    ) -> None:
        source = servers.serve()
        for _ in range(2):
            second = servers.start(
                *("serve", "--addr", "127.0.0.1", "--port", "0", "--file", str(servers.image))
            )
            second.expect_exit(1)
            second.wait_for("is in use by another server")
        stop(source)
        stop(servers.serve())


class Test11IncompleteStandsExactlyWhileTheImageIsIncomplete:
    def test_from_before_the_first_byte_until_after_the_last(self, servers: Servers) -> None:
        source = servers.serve()
        assert not servers.marker.exists()
        destination = servers.listen()
        assert servers.marker.exists()
        servers.start_mirroring_slowly()
        assert servers.marker.exists()
        ask(servers.source_sock, "mirror_max_bps", "0")
        servers.complete(source, destination)

    @pytest.mark.parametrize(
        ("twistd", "number"), [(False, signal.SIGKILL), (True, signal.SIGTERM)]
    )
    def test_it_outlives_the_process_and_nobody_serves_the_image(
        self, servers: Servers, twistd: bool, number: signal.Signals
    ) -> None:
        source, destination = servers.serve(), servers.listen(twistd=twistd)
        servers.start_mirroring_slowly()
        destination.send(number)
        destination.wait()
        assert servers.marker.exists()
        server = servers.start(
            *("serve", "--addr", "127.0.0.1", "--port", "0", "--file", str(servers.copy)),
            twistd=twistd,
        )
        server.expect_exit(1)
        server.wait_for("is incomplete")
        destination = servers.listen(port=int(servers.place[3]), twistd=twistd)
        ask(servers.source_sock, "mirror_max_bps", "0")
        servers.complete(source, destination)  # the source has never given up

    def test_a_destination_whose_marker_is_no_file_does_not_begin(
        self, servers: Servers, twistd: bool
    ) -> None:
        servers.marker.mkdir()
        destination = servers.start(
            *("listen", "--addr", "127.0.0.1", "--port", "0", "--file", str(servers.copy)),
            twistd=twistd,
        )
        destination.expect_exit(1)
        destination.wait_for(re.escape(f"{servers.marker} can't be trusted: it is a folder"))


def end_of_file(sender: RawClient, destination: Child) -> None:
    sender.sock.shutdown(socket.SHUT_WR)
    sender.expect_end()


def bad_magic(sender: RawClient, destination: Child) -> None:
    sender.sock.sendall(b"\x25\x60\x95\x14" + bytes(24))
    sender.end_of_the_conversation()


def an_http_request(sender: RawClient, destination: Child) -> None:
    sender.sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    sender.end_of_the_conversation()


def a_failed_write(sender: RawClient, destination: Child) -> None:
    assert sender.write(SIZE - 512, bytes(1024)) == raw_nbd.ENOSPC
    sender.say_goodbye()


def a_reset(sender: RawClient, destination: Child) -> None:
    sender.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sender.close()


class Test12OnlyDiscAfterAValidStreamThatCoveredTheImageGivesOwnership:
    @pytest.mark.parametrize(
        "ending", [end_of_file, bad_magic, an_http_request, a_failed_write, a_reset]
    )
    def test_the_whole_image_and_then_anything_else_does_not(
        self, servers: Servers, ending: Callable[[RawClient, Child], None]
    ) -> None:
        destination = servers.listen()
        sender = servers.client(destination)
        send_everything(sender, servers.image)
        assert sender.flush() == 0
        ending(sender, destination)
        self.is_not_owned(servers)
        stop(destination, status=1)

    def test_a_signal_does_not(self, servers: Servers, twistd: bool) -> None:
        destination = servers.listen(twistd=twistd)
        sender = servers.client(destination)
        send_everything(sender, servers.image)
        assert sender.flush() == 0
        destination.send(signal.SIGTERM)
        sender.expect_end()
        destination.expect_exit(1)
        assert servers.marker.exists()

    @pytest.mark.parametrize("style", [(), ("--oldstyle",)])
    def test_a_bare_disc_does_not(self, servers: Servers, style: tuple[str, ...]) -> None:
        destination = servers.listen(*style, "--coverage", "any")
        servers.client(destination).say_goodbye()
        self.is_not_owned(servers)
        stop(destination, status=1)

    def test_disc_after_all_but_one_byte_does_not_unless_any_coverage_will_do(
        self, servers: Servers
    ) -> None:
        data = servers.image.read_bytes()
        destination = servers.listen()
        sender = servers.client(destination)
        assert sender.write(1, data[1:]) == 0
        sender.say_goodbye()
        self.is_not_owned(servers)
        stop(destination, status=1)

        destination = servers.listen("--coverage", "any")
        sender = servers.client(destination)
        assert sender.write(0, data[:4096]) == 0
        sender.say_goodbye()
        destination.expect_exit(0)
        assert not servers.marker.exists()
        assert difference(servers.image, servers.copy) is None

    def test_an_http_request_instead_of_a_hello_does_not(self, servers: Servers) -> None:
        destination = servers.listen()
        client = raw_nbd.connect(*destination.listening())
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        RawClient(client).end_of_the_conversation()
        client.close()
        self.is_not_owned(servers)
        stop(destination, status=1)

    def is_not_owned(self, servers: Servers) -> None:
        seen = wait_until(servers.destination_sock, listening_phase="waiting", num_clients="0")
        assert seen["has_control"] == "false"
        assert servers.marker.exists()
