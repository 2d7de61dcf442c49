"""``listen`` as an operator and senders see it: who may send, what that does, where it serves."""

from __future__ import annotations

import re
import socket
from contextlib import nullcontext

import pytest

from support import raw_nbd
from support.images import BLOCK
from support.operator import ask, status, wait_until
from support.ports import held_port
from support.raw_nbd import RawClient
from support.servers import SIZE, Servers, stop, wait_until_some


class TestWhatItCannotStartWith:
    @pytest.mark.parametrize(
        ("words", "complaint"),
        [
            ("-l 127.0.0.1 -p 0 -f {folder}/nothing", "No such file or directory"),
            ("-l 127.0.0.1 -p 0 -f {folder}", "neither a regular file nor a block device"),
            ("-l 192.0.2.1 -p 0 -f {folder}/copy", r"can't listen: .*192\.0\.2\.1:0"),
            ("-l {folder}/image -f {folder}/copy", "exists, and is not a socket"),
            ("-l 127.0.0.1 -p 0 -f {folder}/copy -s {folder}/image", "is not a socket"),
        ],
    )
    def test_it_says_so_and_ends_with_one(
        self, servers: Servers, words: str, complaint: str
    ) -> None:
        server = servers.start("listen", *words.format(folder=servers.folder).split())
        server.expect_exit(1)
        server.wait_for(complaint)
        assert not any("Traceback" in line for line in server.lines)

    def test_an_image_that_is_being_served(self, servers: Servers) -> None:
        servers.serve()
        words = ("listen", "-l", "127.0.0.1", "-p", "0", "-f", str(servers.image))
        server = servers.start(*words)
        server.expect_exit(1)
        server.wait_for("is in use by another server")
        # It has not marked somebody else's image as incomplete.
        assert not (servers.folder / "image.INCOMPLETE").exists()

    def test_a_port_that_is_taken(self, servers: Servers, twistd: bool) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            server = servers.start(
                *("listen", "-l", "127.0.0.1", "-p", port, "-f", str(servers.copy)), twistd=twistd
            )
            server.expect_exit(1)
            server.wait_for("in use")


class TestWhoMaySend:
    def test_one_at_a_time(self, servers: Servers) -> None:
        destination = servers.listen()
        first = servers.client(destination)
        assert first.write(0, servers.image.read_bytes()) == 0
        for _ in range(3):
            with pytest.raises(raw_nbd.ProtocolViolation, match="a sender is connected already"):
                servers.client(destination)
        destination.wait_for("refused: a sender is connected already: 127.0.0.1:.*, since 20")
        first.say_goodbye()
        destination.expect_exit(0)
        servers.is_copied()

    def test_nobody_if_it_is_denied_by_default_until_the_list_is_changed(
        self, servers: Servers
    ) -> None:
        source, destination = servers.serve(), servers.listen("--default-deny")
        assert servers.mirror().stderr.startswith(b"Mirror was rejected: ")
        assert ask(servers.destination_sock, "acl", "127.0.0.0/8") == (0, "updated")
        servers.start_mirroring()
        servers.complete(source, destination)

    def test_a_list_that_is_changed_meanwhile_sends_the_sender_away(self, servers: Servers) -> None:
        source, destination = servers.serve(), servers.listen()
        servers.start_mirroring_slowly()
        assert ask(servers.destination_sock, "acl", "127.0.0.2") == (0, "updated")
        wait_until(servers.destination_sock, listening_phase="waiting", covered_bytes="0")
        wait_until(servers.source_sock, migration_attempt="2")
        assert servers.marker.exists()
        assert ask(servers.destination_sock, "acl") == (0, "updated")
        ask(servers.source_sock, "mirror_max_bps", "0")
        servers.complete(source, destination)

    def test_the_list_is_that_of_the_serving_address_too(self, servers: Servers) -> None:
        source = servers.serve()
        with held_port("127.0.0.3") as port:
            destination = servers.listen(
                "--rebind-addr", "127.0.0.3", "--rebind-port", str(port), "127.0.0.1"
            )
            servers.start_mirroring()
            source.expect_exit(0)
            wait_until(servers.destination_sock, listening_phase="serving")
        RawClient.to("127.0.0.3", port, bind="127.0.0.1").say_goodbye()
        sock = raw_nbd.connect("127.0.0.3", port, "127.0.0.2")
        raw_nbd.expect_end(sock)
        sock.close()
        assert ask(servers.destination_sock, "acl", "127.0.0.2") == (0, "updated")
        RawClient.to("127.0.0.3", port, bind="127.0.0.2").say_goodbye()
        stop(destination)


class TestTheStatus:
    def test_in_each_phase(self, servers: Servers) -> None:
        source = servers.serve()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            destination = servers.listen("--rebind-port", str(taken.getsockname()[1]))
            seen = status(servers.destination_sock)
            assert {key: seen[key] for key in seen if key not in ("filesystem", "holes")} == {
                "pid": str(destination.pid),
                "size": str(SIZE),
                "has_control": "false",
                "clients_allowed": "true",
                "num_clients": "0",
                "is_mirroring": "false",
                "listening_phase": "waiting",
                "listening_state": "waiting",
                "covered_bytes": "0",
                "compared_bytes": "0",
            }
            servers.start_mirroring_slowly()
            seen = status(servers.destination_sock)
            assert seen["listening_phase"] == "receiving"
            assert 0 < int(seen["covered_bytes"]) < SIZE
            assert (seen["has_control"], seen["num_clients"]) == ("false", "1")
            assert seen["clients_allowed"] == "false"
            ask(servers.source_sock, "mirror_max_bps", "0")
            source.expect_exit(0)
            seen = wait_until(servers.destination_sock, listening_phase="rebinding")
            assert (seen["has_control"], seen["clients_allowed"]) == ("true", "false")
            assert int(seen["rebind_attempts"]) >= 1
            assert int(seen["rebind_seconds"]) < 20
            assert seen["rebind_error"]
        seen = wait_until(servers.destination_sock, listening_phase="serving")
        assert (seen["has_control"], seen["clients_allowed"]) == ("true", "true")
        assert not [key for key in seen if key.startswith("rebind_")]
        stop(destination)

    def test_commands_that_make_no_sense_yet(self, servers: Servers) -> None:
        servers.listen()
        for command, answer in (
            (("mirror", "127.0.0.1", "1"), "the image is not here yet"),
            (("break",), "Not mirroring"),
            (("mirror_max_bps", "1"), "Not mirroring"),
        ):
            assert ask(servers.destination_sock, *command) == (1, answer)


class TestRebind:
    @pytest.mark.parametrize("host", ["127.0.0.1", "::1", "/"])
    def test_it_serves_as_serve_does(self, servers: Servers, host: str) -> None:
        place = str(servers.folder / "nbd") if host == "/" else host
        source = servers.serve()
        with nullcontext(0) if host == "/" else held_port(host) as port:
            more = ("--rebind-port", str(port)) if port else ()
            destination = servers.listen("--rebind-addr", place, *more)
            servers.start_mirroring()
            source.expect_exit(0)
            wait_until(servers.destination_sock, listening_phase="serving")
        destination.wait_for("migration complete")
        destination.wait_for("the serving address is open")
        client = RawClient.to(place, port)
        assert client.read(0, SIZE) == servers.image.read_bytes()
        assert client.write(0, b"r" * BLOCK) == 0
        assert client.flush() == 0
        client.say_goodbye()
        stop(destination)
        assert servers.copy.read_bytes()[:BLOCK] == b"r" * BLOCK

    def test_at_the_address_that_it_received_on(self, servers: Servers, port: int) -> None:
        source = servers.serve()
        destination = servers.listen("--rebind-port", str(port), port=port)
        servers.start_mirroring()
        source.expect_exit(0)
        wait_until(servers.destination_sock, listening_phase="serving")
        RawClient.to("127.0.0.1", port).say_goodbye()
        stop(destination)

    def test_in_the_style_that_was_asked_for(self, servers: Servers) -> None:
        source = servers.serve()
        path = servers.folder / "nbd"
        servers.listen("--oldstyle", "--rebind-addr", str(path))
        servers.start_mirroring()
        source.expect_exit(0)
        wait_until(servers.destination_sock, listening_phase="serving")
        sock = raw_nbd.connect(str(path), 0)
        assert int.from_bytes(raw_nbd.receive(sock, 16)[8:], "big") == raw_nbd.OLDSTYLE_MAGIC
        sock.close()

    def test_at_the_sources_address_a_client_finds_it_at_its_first_reconnection(
        self, servers: Servers
    ) -> None:
        source = servers.serve()
        port = source.listening()[1]
        client = servers.client(source)
        destination = servers.listen("--rebind-port", str(port))
        servers.start_mirroring("--unlink")
        client.expect_end()
        again = RawClient.to("127.0.0.1", port)  # not a moment later
        assert again.write(0, b"a" * BLOCK) == 0
        source.expect_exit(0)
        assert not servers.image.exists()
        again.say_goodbye()
        stop(destination)


class TestAnotherSendersBytes:
    def test_what_it_writes_is_there_for_it_to_read(self, servers: Servers) -> None:
        destination = servers.listen()
        sender = servers.client(destination)
        assert sender.write(BLOCK, b"w" * BLOCK) == 0
        assert sender.read(BLOCK, BLOCK) == b"w" * BLOCK
        assert sender.read(0, BLOCK) == bytes(BLOCK)

    def test_zeroing_and_trimming_cover_as_writing_does(self, servers: Servers) -> None:
        destination = servers.listen()
        sender = servers.client(destination)
        third = SIZE // 4
        assert sender.write(0, b"1" * third) == 0
        assert sender.call(raw_nbd.WRITE_ZEROES, third, third) == 0
        assert sender.call(raw_nbd.TRIM, 2 * third, third) == 0
        assert sender.write(3 * third, b"4" * third) == 0
        sender.say_goodbye()
        destination.expect_exit(0)
        assert servers.copy.read_bytes() == b"1" * third + bytes(2 * third) + b"4" * third

    def test_the_sender_that_has_handed_over_is_told_by_the_close(self, servers: Servers) -> None:
        """When the connection is closed, the marker has gone: that is what the close means."""
        destination = servers.listen()
        sender = servers.client(destination)
        assert sender.write(0, servers.image.read_bytes()) == 0
        sender.say_goodbye()
        assert not servers.marker.exists()
        destination.expect_exit(0)
        destination.wait_for(rf"the image is at {re.escape(str(servers.copy))}")

    def test_a_list_of_exports_is_no_migration(self, servers: Servers) -> None:
        servers.listen()
        wait_until(servers.destination_sock, listening_phase="waiting")
        sock = raw_nbd.connect(servers.place[1], int(servers.place[3]))
        client = RawClient(sock)
        raw_nbd.receive(sock, 18)
        sock.sendall((1).to_bytes(4, "big"))
        client.option(3)  # LIST
        client.sock.sendall(raw_nbd.OPTION.pack(raw_nbd.OPTION_MAGIC, raw_nbd.OPT_ABORT, 0))
        client.end_of_the_conversation()
        sock.close()
        wait_until(servers.destination_sock, listening_phase="waiting", num_clients="0")
        assert servers.marker.exists()


def test_the_phase_is_that_of_the_sender_that_is_there_now(servers: Servers) -> None:
    destination = servers.listen()
    for _ in range(3):
        sender = servers.client(destination)
        assert sender.write(0, b"p" * BLOCK) == 0
        wait_until_some(servers.destination_sock)
        sender.close()
        wait_until(servers.destination_sock, listening_phase="waiting", covered_bytes="0")
    stop(destination, status=1)


class TestTheMarker:
    def test_one_that_can_not_listen_leaves_none(self, servers: Servers) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            place = ("--addr", "127.0.0.1", "--port", str(taken.getsockname()[1]))
            for more in ((), ("--sock", str(servers.folder / "no" / "folder"))):
                ended = servers.start("listen", *place, "--file", str(servers.copy), *more)
                ended.expect_exit(1)
                assert not servers.marker.exists()
        servers.image = servers.copy
        stop(servers.serve())

    def test_one_that_has_listened_leaves_it(self, servers: Servers) -> None:
        stop(servers.listen(), 1)
        assert servers.marker.exists()

    def test_one_that_let_a_sender_in_leaves_it(self, servers: Servers) -> None:
        destination = servers.listen()
        servers.client(destination)  # it has chosen the export, and sends nothing
        wait_until(servers.destination_sock, listening_phase="receiving")
        stop(destination, 1)
        assert servers.marker.exists()

    def test_one_that_was_there_before_stays(self, servers: Servers) -> None:
        servers.marker.write_text("an earlier attempt")
        stop(servers.listen(), 1)
        assert servers.marker.exists()
