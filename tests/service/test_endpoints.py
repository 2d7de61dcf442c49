"""Where servers listen: several places at once, descriptions of endpoints, socket activation."""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.operator import status, wait_until
from support.processes import LISTENING, Child, flexmigrate, run, script
from support.raw_nbd import RawClient
from support.relay import Relay
from support.servers import SIZE, Servers, stop

PREPARE_EQUAL = bytes.fromhex("25609513 0000 f103")  # a request's magic, flags and type


def places(server: Child, count: int) -> list[tuple[str, int]]:
    """Wait until the server listens at *count* places; return them in the order of its log."""
    found: list[tuple[str, int]] = []
    while len(found) < count:
        server.wait_for(LISTENING)
        assert server.running, server.story()
        matches = [match for line in server.lines if (match := LISTENING.search(line))]
        found = [(each["host"] or each["path"], int(each["port"] or 0)) for each in matches]
    return found


def read_at(host: str, port: int = 0) -> bytes:
    """Return the whole image as a client there sees it."""
    client = RawClient.to(host, port)
    data = client.read(0, client.size)
    client.say_goodbye()
    return data


@contextmanager
def losing_prepare(servers: Servers, destination: Child) -> Iterator[Relay]:
    """Have `mirror` send by a relay that cuts where PREPARE would pass, when nobody is served."""
    with Relay(*destination.listening()) as relay:
        servers.send_to("127.0.0.1", relay.port)
        relay.stop_at(PREPARE_EQUAL)
        yield relay


def endpoints(*descriptions: str) -> list[str]:
    return [f"--endpoint={each}" for each in descriptions]


def activated(servers: Servers, *words: str) -> Child:
    """Start a program with sockets that systemd would have opened."""
    return servers.children.python("-m", "support.activation", *words)


def serve(servers: Servers, *more: str) -> list[str]:
    """Return the command line of a source that has no address of its own."""
    sock = ("--sock", str(servers.source_sock))
    return ["serve", "--file", str(servers.image), *sock, *more]


class TestSeveralPlaces:
    def test_each_reaches_the_image(self, servers: Servers, tmp_path: Path, twistd: bool) -> None:
        path = str(tmp_path / "nbd")
        address = ("--addr", "127.0.0.1", "--port", "0")
        described = endpoints("tcp:0:interface=127.0.0.1", r"tcp:0:interface=\:\:1", f"unix:{path}")
        server = servers.start(*serve(servers, *address, *described), twistd=twistd)
        found = places(server, 4)
        assert sorted(host for host, _ in found) == sorted(["127.0.0.1"] * 2 + ["::1", path])
        assert len(set(found)) == 4
        for place in found:
            assert read_at(*place) == servers.image.read_bytes()
        stop(server)
        assert not Path(path).exists()

    def test_real_clients_at_a_unix_socket(self, servers: Servers, tmp_path: Path) -> None:
        path = str(tmp_path / "nbd")
        server = servers.start(*serve(servers, *endpoints(f"unix:{path}")))
        places(server, 1)
        shown = run("nbdinfo", "--size", f"nbd+unix:///?socket={path}")
        assert shown.stdout == f"{SIZE}\n".encode(), shown
        copy = tmp_path / "copied"
        assert run("nbdcopy", f"nbd+unix:///?socket={path}", str(copy)).returncode == 0
        assert copy.read_bytes() == servers.image.read_bytes()
        target = f"nbd+unix:///?socket={path}"
        written = flexmigrate("write", target, "--from", "0", "--size", "3", stdin=b"abc")
        assert written.returncode == 0, written
        assert flexmigrate("read", target, "--from", "0", "--size", "3").stdout == b"abc"

    def test_all_are_freed_for_the_next_owner(self, servers: Servers, tmp_path: Path) -> None:
        """The destination takes the address while the source's other exports are no more."""
        path = str(tmp_path / "nbd")
        source = servers.start(*serve(servers, *endpoints(f"unix:{path}")))
        places(source, 1)
        destination = servers.listen("--rebind-addr", path)
        servers.start_mirroring()
        source.expect_exit(0)
        wait_until(servers.destination_sock, listening_phase="serving")
        assert read_at(path) == servers.image.read_bytes()
        stop(destination)

    def test_a_migration_to_a_described_endpoint(self, servers: Servers, tmp_path: Path) -> None:
        path = str(tmp_path / "in")
        source = servers.serve()
        destination = servers.start(
            "listen", "--file", str(servers.copy), *endpoints(f"unix:{path}")
        )
        places(destination, 1)
        servers.place = ("--addr", path)
        servers.start_mirroring()
        servers.complete(source, destination)

    def test_a_server_is_not_its_own_destination(self, servers: Servers, tmp_path: Path) -> None:
        path = str(tmp_path / "nbd")
        server = servers.start(*serve(servers, *endpoints(f"unix:{path}")))
        places(server, 1)
        (tmp_path / "other").symlink_to(path)
        for name in ("nbd", "other"):
            servers.place = ("--addr", str(tmp_path / name))
            refused = servers.mirror()
            assert (refused.returncode, b"the very server" in refused.stderr) == (1, True)
        stop(server)

    def test_a_unix_socket_is_taken_again_after_a_handover_that_failed(
        self, servers: Servers, tmp_path: Path
    ) -> None:
        path = str(tmp_path / "nbd")
        server = servers.start(*serve(servers, *endpoints(f"unix:{path}")))
        places(server, 1)
        destination = servers.listen()
        with losing_prepare(servers, destination) as relay:
            servers.start_mirroring("--unlink")
            server.wait_for("no longer listening")
            assert places(server, 2)[-1] == (path, 0)
            assert read_at(path) == servers.image.read_bytes()
            relay.start_again()
            server.expect_exit(0)
            destination.expect_exit(0)


class TestWhatIsWrong:
    @pytest.mark.parametrize("command", ["serve", "listen"])
    @pytest.mark.parametrize(
        ("description", "text"),
        [
            ("fly:1", "Unknown endpoint type"),
            ("tcp:", "invalid literal"),
            ("tcp:1:colour=red", "colour"),
            ("systemd:domain=INET:index=0", "no such socket was passed"),
            ("systemd:domain=INET:name=nbd", "no such socket was passed"),
        ],
    )
    def test_a_description_is_a_wrong_command_line(
        self, servers: Servers, command: str, description: str, text: str
    ) -> None:
        file = ("--file", str(servers.copy))
        ended = flexmigrate(command, *file, *endpoints(description))
        assert ended.returncode == 2
        assert f"--endpoint {description}: ".encode() in ended.stderr
        assert text.encode() in ended.stderr
        assert not servers.marker.exists()  # nothing was going to happen to the image

    def test_a_description_under_twistd(self, servers: Servers) -> None:
        server = servers.start(*serve(servers, *endpoints("fly:1")), twistd=True)
        server.expect_exit(2)
        server.wait_for("--endpoint fly:1: ")

    def test_one_of_several_places_that_is_taken(self, servers: Servers) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            described = endpoints("tcp:0:interface=127.0.0.1", f"tcp:{port}:interface=127.0.0.1")
            server = servers.start(*serve(servers, *described))
            server.expect_exit(1)
        server.wait_for(rf"can't listen: .*{port}")

    def test_the_socket_of_a_dead_server_is_replaced(
        self, servers: Servers, tmp_path: Path
    ) -> None:
        path = str(tmp_path / "nbd")
        words = serve(servers, *endpoints(f"unix:{path}"))
        dead = servers.start(*words)
        places(dead, 1)
        dead.end()
        assert Path(path).is_socket()
        server = servers.start(*words)
        places(server, 1)
        assert read_at(path) == servers.image.read_bytes()

    def test_the_socket_of_a_living_server_is_not(self, servers: Servers, tmp_path: Path) -> None:
        path = str(tmp_path / "nbd")
        living = servers.start(*serve(servers, *endpoints(f"unix:{path}")))
        places(living, 1)
        second = servers.start("serve", "--file", str(servers.copy), *endpoints(f"unix:{path}"))
        second.expect_exit(1)
        assert read_at(path) == servers.image.read_bytes()


class TestSocketActivation:
    def serve(self, servers: Servers, *sockets: str, descriptions: list[str]) -> Child:
        program = [script("flexmigrate"), *serve(servers, *endpoints(*descriptions))]
        return activated(servers, *sockets, "--", *program)

    def test_by_number(self, servers: Servers) -> None:
        server = self.serve(servers, "127.0.0.1:0", descriptions=["systemd:domain=INET:index=0"])
        (place,) = places(server, 1)
        assert read_at(*place) == servers.image.read_bytes()
        stop(server)

    def test_by_the_program_of_systemd_that_gives_no_names(
        self, servers: Servers, port: int
    ) -> None:
        program = serve(servers, *endpoints("systemd:domain=INET:index=0"))
        activate = ("systemd-socket-activate", "--listen", f"127.0.0.1:{port}")
        server = servers.children.start(*activate, script("flexmigrate"), *program)
        server.wait_for("Listening on")
        assert read_at("127.0.0.1", port) == servers.image.read_bytes()
        stop(server)

    def test_by_name_and_of_each_family(self, servers: Servers, tmp_path: Path) -> None:
        path = str(tmp_path / "nbd")
        server = self.serve(
            servers,
            "here=127.0.0.1:0",
            f"there={path}",
            descriptions=["systemd:domain=UNIX:name=there", "systemd:domain=INET:name=here"],
        )
        found = places(server, 2)
        assert path in [host for host, _ in found]
        for place in found:
            assert read_at(*place) == servers.image.read_bytes()
        stop(server)
        # It is systemd's, which goes on listening, and has decided who may connect.
        assert stat.filemode(Path(path).stat().st_mode) == "srw-------"

    def test_under_twistd(self, servers: Servers) -> None:
        words = serve(servers, *endpoints("systemd:domain=INET:index=0"))
        program = (script("twistd"), "--nodaemon", "--pidfile=", "flexmigrate", *words)
        server = activated(servers, "127.0.0.1:0", "--", *program)
        (place,) = places(server, 1)
        assert read_at(*place) == servers.image.read_bytes()
        stop(server)

    def test_a_migration_from_it(self, servers: Servers) -> None:
        server = self.serve(servers, "127.0.0.1:0", descriptions=["systemd:domain=INET:index=0"])
        places(server, 1)
        destination = servers.listen()
        servers.start_mirroring()
        servers.complete(server, destination)

    def test_a_migration_to_it(self, servers: Servers) -> None:
        source = servers.serve()
        listen = ("listen", "--file", str(servers.copy))
        destination = activated(
            servers,
            "127.0.0.1:0",
            "--",
            script("flexmigrate"),
            *listen,
            *endpoints("systemd:domain=INET:index=0"),
        )
        servers.send_to(*places(destination, 1)[0])
        servers.start_mirroring()
        servers.complete(source, destination)

    def test_the_socket_is_taken_again_after_a_handover_that_failed(
        self, servers: Servers, tmp_path: Path
    ) -> None:
        """Listening uses a descriptor up; its number then belongs to something else."""
        server = self.serve(servers, "127.0.0.1:0", descriptions=["systemd:domain=INET:index=0"])
        (place,) = places(server, 1)
        destination = servers.listen()
        content = servers.image.read_bytes()
        with losing_prepare(servers, destination) as relay:
            servers.start_mirroring("--unlink")
            server.wait_for("no longer listening")
            assert places(server, 2)[-1] == place
            assert read_at(*place) == content
            assert status(servers.source_sock)["is_mirroring"] == "true"
            relay.start_again()
            server.expect_exit(0)
            destination.expect_exit(0)
        assert not servers.image.exists()
        assert servers.copy.read_bytes() == content
