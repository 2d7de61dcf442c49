"""Handovers by a session between processes: killed at the worst moments, started again, and judged
by ``whose`` at both ends.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flexmigrate.net.address import Address
from flexmigrate.wire.handover import State
from support.images import assert_same, blank_image, random_image
from support.journals import leave_committed, leave_owner, state_of
from support.operator import wait_until
from support.processes import Child, flexmigrate
from support.relay import Relay
from support.servers import SIZE, Servers, stop

OWN, OTHER, UNKNOWN = 0, 3, 4

# Requests as they stand on the wire (docs/handover-protocol.rst).
PREPARE, COMMIT = (bytes.fromhex(f"25609513 0000 {number}") for number in ("f103", "f101"))


def whose(image: Path, *words: str | Path) -> int:
    return flexmigrate("whose", str(image), *map(str, words)).returncode


def journal(image: Path) -> Path:
    return image.with_name(f"{image.name}.handover")


def by_both(servers: Servers) -> tuple[int, int]:
    """What ``whose`` says at the source and at the destination, each with the other's journal."""
    return (
        whose(servers.image, "--peer-journal", journal(servers.copy)),
        whose(servers.copy, "--peer-journal", journal(servers.image)),
    )


def is_settled(servers: Servers) -> None:
    assert by_both(servers) == (OTHER, OWN)
    assert (whose(servers.image), whose(servers.copy)) == (OTHER, OWN)
    servers.is_copied()


@contextmanager
def stopped_at(
    servers: Servers, pattern: bytes, *more: str, behind: bool = False
) -> Iterator[tuple[Relay, Child, Child]]:
    """Migrate, through a relay that goes dark at *pattern*; give it, source and destination."""
    source, destination = servers.serve(), servers.listen(*more)
    with Relay("127.0.0.1", int(servers.place[3])) as relay:
        relay.stop_at(pattern, behind=behind)
        servers.send_to("127.0.0.1", relay.port)
        servers.start_mirroring()
        relay.wait_until_stopped()
        yield relay, source, destination


def serve_again(servers: Servers) -> Child:
    """Start the source again, which must not come to listen."""
    place = ("--addr", "127.0.0.1", "--port", "0", "--file", str(servers.image))
    return servers.start("serve", *place)


class TestCommitIsLost:
    def test_the_source_asks_until_it_is_answered(self, servers: Servers) -> None:
        with stopped_at(servers, COMMIT) as (relay, source, destination):
            source.wait_for("is asked again")
            seen = wait_until(servers.source_sock, migration_phase="committing")
            assert seen["is_mirroring"] == "true"
            assert (whose(servers.image), whose(servers.copy)) == (OTHER, UNKNOWN)
            assert by_both(servers) == (OTHER, OWN)
            broken = flexmigrate("break", "--sock", str(servers.source_sock))
            assert b"too late" in broken.stderr
            relay.start_again()
            servers.complete(source, destination)
        is_settled(servers)

    def test_the_source_is_killed_and_started_again(self, servers: Servers) -> None:
        with stopped_at(servers, COMMIT, behind=False) as (relay, source, destination):
            source.wait_for("is asked again")
            source.send(signal.SIGKILL)
            source.wait()
            unsettled = serve_again(servers)
            unsettled.expect_exit(1)
            unsettled.wait_for("was handed over to .*copy.*which has not confirmed it")
            assert by_both(servers) == (OTHER, OWN)
            relay.start_again()
            serve_again(servers).expect_exit(0)
            destination.expect_exit(0)
        is_settled(servers)
        refused = serve_again(servers)
        refused.expect_exit(1)
        refused.wait_for("was migrated to .*copy")

    def test_the_source_is_told_to_end(self, servers: Servers) -> None:
        with stopped_at(servers, COMMIT) as (relay, source, destination):
            source.wait_for("is asked again")
            stop(source, 1)
            assert whose(servers.image) == OTHER
            relay.start_again()
            serve_again(servers).expect_exit(0)
            destination.expect_exit(0)
        is_settled(servers)

    def test_the_destination_is_killed_and_started_again(self, servers: Servers) -> None:
        with stopped_at(servers, COMMIT) as (relay, source, destination):
            source.wait_for("is asked again")
            destination.send(signal.SIGKILL)
            destination.wait()
            assert by_both(servers) == (OTHER, OWN)
            serve = flexmigrate("serve", "-l", "127.0.0.1", "-p", "0", "-f", str(servers.copy))
            assert serve.returncode == 1
            assert b"waits to be told by its source" in serve.stderr
            port = destination.listening()[1]
            assert servers.marker.exists()
            again = servers.listen(port=port)
            relay.start_again()
            servers.complete(source, again)
        is_settled(servers)

    def test_with_unlink_the_file_goes_only_once_it_is_confirmed(self, servers: Servers) -> None:
        source, destination = servers.serve(), servers.listen()
        original = servers.image.read_bytes()
        with Relay("127.0.0.1", int(servers.place[3])) as relay:
            relay.stop_at(COMMIT)
            servers.send_to("127.0.0.1", relay.port)
            servers.start_mirroring("--unlink")
            source.wait_for("is asked again")
            source.send(signal.SIGKILL)
            source.wait()
            assert servers.image.exists()
            relay.start_again()
            serve_again(servers).expect_exit(0)
            destination.expect_exit(0)
        assert not servers.image.exists()
        assert servers.copy.read_bytes() == original
        assert (whose(servers.image), whose(servers.copy)) == (OTHER, OWN)


class TestTheAnswerToCommitIsLost:
    def test_the_source_asks_again_and_is_told(self, servers: Servers) -> None:
        with stopped_at(servers, COMMIT, behind=True) as (relay, source, destination):
            source.wait_for("is asked again")
            assert by_both(servers) == (OTHER, OWN)
            relay.start_again()
            servers.complete(source, destination)
        is_settled(servers)

    def test_a_destination_that_serves_is_asked_where_it_listened(
        self, servers: Servers, port: int
    ) -> None:
        rebind = ("--rebind-port", str(port))
        with stopped_at(servers, COMMIT, *rebind, behind=True) as (relay, source, destination):
            source.wait_for("is asked again")
            relay.start_again()
            source.expect_exit(0)
        is_settled(servers)
        stop(destination)

    def test_the_destination_has_left_and_a_server_of_the_image_tells(
        self, servers: Servers
    ) -> None:
        with stopped_at(servers, COMMIT, behind=True) as (relay, source, destination):
            source.wait_for("is asked again")
            destination.expect_exit(0, 30)  # it lingers for its source, but not for ever
            port = destination.listening()[1]
            place = ("--addr", "127.0.0.1", "--port", str(port), "--file", str(servers.copy))
            server = servers.start("serve", *place)
            server.listening()
            peer = ("--peer", f"127.0.0.1:{port}")
            assert whose(servers.image, *peer) == OTHER
            told = flexmigrate("whose", str(servers.image), *peer)
            known = flexmigrate(
                "whose", str(servers.image), "--peer-journal", str(journal(servers.copy))
            )
            assert told.stdout == known.stdout
            relay.start_again()
            source.expect_exit(0)
            stop(server)
        is_settled(servers)
        refused = servers.start("listen", *place)
        refused.expect_exit(1)
        refused.wait_for("flexmigrate release")

    def test_a_server_of_the_image_at_another_address_tells_where_it_was_received(
        self, servers: Servers
    ) -> None:
        with stopped_at(servers, COMMIT, behind=True) as (relay, source, destination):
            source.wait_for("is asked again")
            destination.expect_exit(0, 30)
            host, port = destination.listening()
            other = random_image(servers.folder / "other", SIZE)
            names = ("--export", f"a={other}", "--export", f"b={servers.copy}")
            place = ("--addr", "127.0.0.1", "--port", "0", *names)
            server = servers.start("serve", *place)
            server.wait_for("answering a source that may ask")
            # It's nobody else's address: a client is refused, and finds the image where it is.
            words = ("--from", "0", "--size", "512")
            refused = flexmigrate("read", "--addr", host, "--port", str(port), *words)
            assert refused.returncode == 1
            assert b"nothing is served at this address" in refused.stderr
            host, port = server.listening()
            found = flexmigrate("read", f"nbd://{host}:{port}/b", *words)
            assert found.stdout == servers.copy.read_bytes()[:512]
            relay.start_again()
            source.expect_exit(0)
            server.wait_for("no longer at")
            stop(server)
        is_settled(servers)
        again = servers.start("serve", *place)
        again.listening()
        stop(again)
        assert "answering a source" not in again.story()

    def test_an_address_that_another_has_by_then_is_only_told_of(self, servers: Servers) -> None:
        with stopped_at(servers, COMMIT, behind=True) as (_, source, destination):
            source.wait_for("is asked again")
            destination.expect_exit(0, 30)
            taken = ("--addr", "127.0.0.1", "--port", str(destination.listening()[1]))
            other = random_image(servers.folder / "other", SIZE)
            servers.start("serve", *taken, "--file", str(other)).listening()
            place = ("--addr", "127.0.0.1", "--port", "0", "--file", str(servers.copy))
            server = servers.start("serve", *place)
            server.wait_for("not listening for the source's question")
            servers.client(server)
            stop(server)


class TestStartedAgain:
    """Under both runners: what the supervisor reads of a handover that is asked about."""

    def test_the_destination_knows(self, servers: Servers, twistd: bool) -> None:
        leave_owner(servers.copy)
        place = ("--addr", "127.0.0.1", "--port", "0", "--file")
        owner = servers.start("serve", *place, str(servers.copy))
        leave_committed(servers.image, Address.tcp(*owner.listening()))
        servers.start("serve", *place, str(servers.image), twistd=twistd).expect_exit(0)
        assert state_of(servers.image) is State.DONE
        servers.start("serve", *place, str(servers.image), twistd=twistd).expect_exit(1)
        stop(owner)

    def test_nobody_is_there(self, servers: Servers, twistd: bool) -> None:
        leave_committed(servers.image, Address.unix(str(servers.folder / "nobody")))
        place = ("--addr", "127.0.0.1", "--port", "0", "--file", str(servers.image))
        servers.start("serve", *place, twistd=twistd).expect_exit(1)
        assert state_of(servers.image) is State.COMMITTED


class TestPrepareIsLost:
    def test_the_source_serves_on_and_comes_again(self, servers: Servers) -> None:
        for behind in (False, True):
            with stopped_at(servers, PREPARE, behind=behind) as (relay, source, destination):
                source.wait_for("the serving address is open")
                client = servers.client(source)
                assert client.write(0, b"w" * 4096) == 0
                assert by_both(servers) == (OWN, OTHER)
                relay.start_again()
                servers.complete(source, destination)
            is_settled(servers)
            for path in (journal(servers.image), journal(servers.copy)):
                path.unlink()
            servers.copy.unlink()
            blank_image(servers.copy, SIZE)
            content = servers.image.read_bytes()
            servers.image.unlink()  # its attribute says that it was given away
            servers.image.write_bytes(content)

    def test_a_prepared_destination_is_for_its_source_only(self, servers: Servers) -> None:
        with stopped_at(servers, PREPARE, behind=True) as (relay, source, destination):
            destination.wait_for("prepared: ")
            port = destination.listening()[1]
            flexmigrate("break", "--sock", str(servers.source_sock))
            servers.send_to("127.0.0.1", port)
            plain = servers.mirror("--handover", "plain")
            assert plain.returncode == 1
            assert b"Mirror was rejected: " in plain.stderr
            assert b"what is here may be the image of" in plain.stderr
            destination.wait_for("may be the image of")
            # Another migration of the same image, which was never committed, may have it.
            servers.start_mirroring()
            servers.complete(source, destination)
            assert relay.connections
        is_settled(servers)


class TestPlainly:
    def test_a_session_that_is_insisted_on_is_not_given_up(self, servers: Servers) -> None:
        servers.serve()
        servers.listen("--oldstyle")
        answer = servers.mirror("--handover", "session")
        assert answer.returncode == 1
        assert b"support sessions" in answer.stderr
        servers.start_mirroring()

    def test_the_journal_of_the_source_tells_of_it(self, servers: Servers) -> None:
        source, destination = servers.serve(), servers.listen()
        servers.start_mirroring("--handover", "plain")
        servers.complete(source, destination)
        assert (whose(servers.image), whose(servers.copy)) == (OTHER, OWN)
        again = ("listen", "--addr", "127.0.0.1", "--port", "0", "--file", str(servers.copy))
        refused = servers.start(*again)
        refused.expect_exit(1)
        refused.wait_for("flexmigrate release")
        serve_again(servers).expect_exit(1)
        assert flexmigrate("take", "--yes", str(servers.image)).returncode == 0
        stop(servers.serve())
        assert_same(servers.image, servers.copy)
        assert flexmigrate("release", "--yes", str(servers.copy)).returncode == 0
        listening = servers.start(*again)
        listening.listening()
        listening.send(signal.SIGTERM)
        listening.expect_exit(1)
