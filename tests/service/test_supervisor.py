"""What systemd is told: by a clock and a socket in the test, and by real servers."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from flexmigrate.service.status_values import describe
from flexmigrate.service.supervisor import STATUS_SECONDS, Supervisor
from flexmigrate.telemetry.status import Status
from support.processes import PATIENCE
from support.servers import Servers

Message = dict[str, str]


class Ear:
    """The socket that a supervisor listens at.

    :ivar name: what NOTIFY_SOCKET is to say.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{name[1:]}" if name.startswith("@") else name)
        self._socket.settimeout(PATIENCE)

    def close(self) -> None:
        self._socket.close()

    def hear(self) -> Message:
        """Return the next message; an error if none comes in time."""
        lines = self._socket.recv(4096).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)

    def heard(self) -> list[Message]:
        """Return those that have come already."""
        found = []
        self._socket.setblocking(False)
        try:
            while True:
                found.append(self.hear())
        except BlockingIOError:
            return found
        finally:
            self._socket.settimeout(PATIENCE)


@pytest.fixture(params=["path", "abstract"])
def ear(request: pytest.FixtureRequest) -> Iterator[Ear]:
    with tempfile.TemporaryDirectory() as folder:
        name = f"{folder}/notify"
        made = Ear(name if request.param == "path" else f"@{name}")
        yield made
        made.close()


def status(**more: object) -> Status:
    fields: dict[str, object] = {
        "pid": 1,
        "size": 1000,
        "has_control": True,
        "clients_allowed": True,
        "num_clients": 2,
        "is_mirroring": False,
    }
    return Status(**{**fields, **more})  # type: ignore[arg-type]  # a status of parts


class TestByTheClock:
    def test_ready_then_what_changes_then_the_end(self, ear: Ear) -> None:
        clock, said = Clock(), ["one"]
        supervisor = Supervisor(clock, {"NOTIFY_SOCKET": ear.name})
        assert ear.heard() == []
        supervisor.ready(lambda: said[0])
        assert ear.heard() == [{"READY": "1", "STATUS": "one"}]
        clock.advance(STATUS_SECONDS)
        assert ear.heard() == []
        said[0] = "two\nREADY=0"
        clock.pump([STATUS_SECONDS / 2] * 8)
        assert ear.heard() == [{"STATUS": r"two\nREADY=0"}]
        supervisor.ending("SIGTERM")
        said[0] = "three"
        clock.advance(STATUS_SECONDS)
        assert ear.heard() == [{"STOPPING": "1", "STATUS": "SIGTERM"}]

    def test_the_watchdog_is_fed_twice_as_often_as_it_asks_for_until_the_end(
        self, ear: Ear
    ) -> None:
        clock = Clock()
        environ = {
            "NOTIFY_SOCKET": ear.name,
            "WATCHDOG_USEC": "3000000",
            "WATCHDOG_PID": str(os.getpid()),
        }
        supervisor = Supervisor(clock, environ)
        supervisor.ready(lambda: "x")
        ear.heard()
        clock.pump([0.5] * 6)
        assert ear.heard() == [{"WATCHDOG": "1"}] * 2
        supervisor.ending("done")
        clock.pump([0.5] * 3)
        assert ear.heard()[1:] == [{"WATCHDOG": "1"}]

    @pytest.mark.parametrize(
        "variables", [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "much"}, {"WATCHDOG_PID": "1"}]
    )
    def test_no_watchdog_that_is_not_ours(self, ear: Ear, variables: dict[str, str]) -> None:
        clock = Clock()
        usec = {"WATCHDOG_USEC": "2000000"} if "WATCHDOG_PID" in variables else {}
        supervisor = Supervisor(clock, {"NOTIFY_SOCKET": ear.name, **usec, **variables})
        supervisor.ready(lambda: "x")
        ear.heard()
        clock.pump([1.0] * 10)
        assert ear.heard() == []

    @pytest.mark.parametrize("name", ["", "relative", "vsock:2:1"])
    def test_without_a_socket_nothing_is_done(self, name: str) -> None:
        clock = Clock()
        supervisor = Supervisor(clock, {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1000000"})
        supervisor.ready(lambda: "x")
        supervisor.ending("x")
        assert clock.getDelayedCalls() == []

    def test_one_that_is_gone_does_no_harm(self) -> None:
        supervisor = Supervisor(Clock(), {"NOTIFY_SOCKET": "/nonexistent/notify"})
        supervisor.ready(lambda: "x")
        supervisor.ending("x")


class TestSentences:
    @pytest.mark.parametrize(
        ("more", "sentence"),
        [
            ({}, "serving an image at ::1, 2 clients"),
            ({"listening_phase": "serving"}, "serving an image at ::1, 2 clients"),
            ({"listening_phase": "waiting"}, "waiting for a migration at ::1"),
            (
                {"listening_phase": "receiving", "covered_bytes": 430},
                "receiving at ::1: 43 % of 1000 bytes",
            ),
            ({"listening_phase": "complete"}, "the image is here"),
            (
                {"listening_phase": "rebinding", "rebind_error": "in use"},
                "the image is here; can't serve it yet: in use",
            ),
        ],
    )
    def test_each_state(self, more: dict[str, object], sentence: str) -> None:
        assert describe([status(**more)], ["::1"]) == sentence

    def test_the_exports_that_migrate(self) -> None:
        migrating = status(
            is_mirroring=True,
            export="b",
            migration_state="copying",
            migration_attempt=1,
            migration_pass=2,
            migration_bytes_left=300,
            migration_seconds_left=4,
        )
        text = "migrating: export b, copying, attempt 1, pass 2, 300 bytes left, about 4 s"
        assert describe([status(export="a"), migrating], []) == text
        text = "serving 2 exports at ::1, /run/nbd, 2 clients"
        assert describe([status(), status()], ["::1", "/run/nbd"]) == text


class TestServers:
    @pytest.mark.parametrize("twistd", [False, True])
    def test_a_server_says_that_it_is_ready_and_that_it_ends(
        self, servers: Servers, ear: Ear, twistd: bool
    ) -> None:
        server = servers.serve(twistd=twistd, env={"NOTIFY_SOCKET": ear.name})
        host, port = server.listening()
        place = f"{host}:{port}"
        assert ear.hear() == {"READY": "1", "STATUS": f"serving an image at {place}, 0 clients"}
        server.send(signal.SIGTERM)
        assert ear.hear() == {"STOPPING": "1", "STATUS": "SIGTERM"}
        server.expect_exit(0)

    def test_a_destination_and_a_source(self, servers: Servers, ear: Ear, tmp_path: Path) -> None:
        source = servers.serve()
        destination = servers.start(
            *("listen", "--addr", "127.0.0.1", "--port", "0", "--file", str(servers.copy)),
            env={"NOTIFY_SOCKET": ear.name},
        )
        host, port = destination.listening()
        ready = {"READY": "1", "STATUS": f"waiting for a migration at {host}:{port}"}
        assert ear.hear() == ready
        servers.send_to(host, port)
        servers.start_mirroring()
        servers.complete(source, destination)
        *_, last = ear.heard()
        assert last["STOPPING"] == "1"
        assert last["STATUS"].startswith("migration complete")

    def test_one_that_can_not_listen_never_says_ready(self, servers: Servers, ear: Ear) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            place = ("--addr", "127.0.0.1", "--port", port)
            server = servers.start(
                *("serve", *place, "--file", str(servers.image)), env={"NOTIFY_SOCKET": ear.name}
            )
            server.expect_exit(1)
        assert [sorted(each) for each in ear.heard()] == [["STATUS", "STOPPING"]]

    def test_the_watchdog_is_fed(self, servers: Servers, ear: Ear) -> None:
        server = servers.serve(env={"NOTIFY_SOCKET": ear.name, "WATCHDOG_USEC": "200000"})
        ear.hear()
        assert ear.hear() == ear.hear() == {"WATCHDOG": "1"}
        server.end()
