"""``--metrics`` on real servers: what Prometheus would read, and who may read what."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from flexmigrate.net.address import Address
from support.journals import leave_committed
from support.operator import ask, status, wait_until
from support.processes import TESTS, Child, flexmigrate
from support.programs import Programs
from support.servers import SIZE, Servers, stop

PLACE = re.compile(r"metrics at (?P<place>\S+)")


def test_every_query_of_the_dashboard_is_one(tmp_path: Path) -> None:
    """Promtool knows no dashboards, but rules, whose queries it reads."""
    board = json.loads((TESTS.parent / "docs" / "grafana-dashboard.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    rules = [
        {"record": f"query:{at}", "expr": query.replace("$__rate_interval", "5m")}
        for at, query in enumerate(queries)
    ]
    file = tmp_path / "rules.yml"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    said = Programs().run("promtool", "check", "rules", str(file))
    assert f"SUCCESS: {len(rules)} rules found" in said


def place_of(server: Child) -> str:
    """Wait until the metrics are offered; return where."""
    return server.wait_for(PLACE)["place"]


def scrape(server: Child, method: str = "GET", path: str = "/metrics") -> str:
    request = urllib.request.Request(f"http://{place_of(server)}{path}", method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert "Access-Control-Allow-Origin" not in answer.headers
        text: str = answer.read().decode()
    return text


def samples(text: str) -> dict[str, float]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


class TestServing:
    def test_requests_of_each_command(self, servers: Servers) -> None:
        source = servers.serve("--metrics", "127.0.0.1:0", "--export", "disk")
        before = samples(scrape(source))
        for arguments in (("--from", "0", "--size", "8K"), ("--from", "4K", "--size", "1")):
            uri = "nbd://{}:{}/disk".format(*source.listening())
            assert flexmigrate("read", uri, *arguments).returncode == 0
        after = samples(scrape(source))
        count = 'flexmigrate_request_duration_seconds_count{command="read",export="disk"}'
        size = 'flexmigrate_request_size_bytes_total{command="read",export="disk"}'
        assert (before[count], before[size]) == (0, 0)
        assert (after[count], after[size]) == (2, 8193)
        bucket = 'flexmigrate_request_duration_seconds_bucket{command="read",export="disk",le="%s"}'
        assert after[bucket % "+Inf"] == 2
        assert after['flexmigrate_export_size_bytes{export="disk"}'] == SIZE

    def test_promtool_has_no_complaint(self, servers: Servers) -> None:
        other = servers.folder / "other"
        other.write_bytes(bytes(4096))
        source = servers.serve("--metrics", "127.0.0.1:0", "--export", f'we"i\\rd={other}')
        checked = subprocess.run(
            [Programs().path("promtool"), "check", "metrics"],
            input=scrape(source),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")

    def test_clients_that_are_connected(self, servers: Servers) -> None:
        source = servers.serve("--metrics", "127.0.0.1:0")
        servers.client(source)
        found = samples(scrape(source))
        assert found["flexmigrate_clients"] == 1
        assert found['flexmigrate_export_clients{export=""}'] == 1

    def test_at_a_unix_socket(self, servers: Servers) -> None:
        path = servers.folder / "metrics.sock"
        source = servers.serve("--metrics", str(path))
        assert place_of(source) == str(path)
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(60)
            client.connect(str(path))
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            answer = b""
            while piece := client.recv(65536):
                answer += piece
        assert answer.startswith(b"HTTP/1.0 200 OK\r\n")
        assert b"\nflexmigrate_clients 0.0\n" in answer

    def test_without_the_option_nothing_of_it_is_loaded(self) -> None:
        code = (
            "import sys; import flexmigrate.service;"
            "sys.exit('prometheus_client' in sys.modules or 'twisted.web.server' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


class TestRefused:
    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [("POST", "/metrics", 405), ("DELETE", "/metrics", 501), ("GET", "/other", 404)],
    )
    def test_all_but_reading(self, servers: Servers, method: str, path: str, status: int) -> None:
        source = servers.serve("--metrics", "127.0.0.1:0")
        with pytest.raises(urllib.error.HTTPError) as caught:
            scrape(source, method, path)
        caught.value.close()
        assert caught.value.code == status

    @pytest.mark.parametrize("said", [b"", b"GET /metrics HTTP/1.1\r\nHost: a\r\n"])
    def test_those_who_do_not_ask_keep_nobody_away(self, servers: Servers, said: bytes) -> None:
        source = servers.serve("--metrics", "127.0.0.1:0")
        host, _, port = place_of(source).rpartition(":")
        with contextlib.ExitStack() as connections:
            for number in range(100):
                address = (f"127.0.0.{2 + number % 3}", 0)
                slow = socket.create_connection((host, int(port)), 20, address)
                connections.enter_context(slow).sendall(said)
            assert "flexmigrate_export_owned" in scrape(source)

    def test_one_host_that_reads_no_answers_does_not_either(self, servers: Servers) -> None:
        source = servers.serve("--metrics", "127.0.0.1:0")
        host, _, port = place_of(source).rpartition(":")
        asked = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n" * 1000
        before = samples(scrape(source))["process_resident_memory_bytes"]
        with contextlib.ExitStack() as connections:
            for _ in range(100):
                slow = socket.create_connection((host, int(port)), 20, ("127.0.0.2", 0))
                connections.enter_context(slow)
                with contextlib.suppress(ConnectionError):
                    slow.sendall(asked)
            found = samples(scrape(source))
            assert found["process_resident_memory_bytes"] - before < 16 << 20

    def test_a_long_body_is_not_kept(self, servers: Servers) -> None:
        source = servers.serve("--metrics", "127.0.0.1:0")
        before = samples(scrape(source))["process_resident_memory_bytes"]
        host, _, port = place_of(source).rpartition(":")
        size = 64 << 20
        with socket.create_connection((host, int(port)), 20) as client:
            client.sendall(b"POST /metrics HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % size)
            for _ in range(size >> 20):
                client.sendall(bytes(1 << 20))
            assert client.recv(12) == b"HTTP/1.0 405"
        assert samples(scrape(source))["process_resident_memory_bytes"] - before < 16 << 20

    def test_a_place_that_makes_no_sense(self) -> None:
        for word, why in (("nowhere", "is not a server endpoint"), ("127.0.0.1:99999", "a port")):
            place = ("--addr", "127.0.0.1", "--port", "0", "--file", "image")
            refused = flexmigrate("serve", *place, "--metrics", word)
            assert refused.returncode == 2
            assert why in refused.stderr.decode()

    def test_a_place_that_is_taken(self, servers: Servers) -> None:
        source = servers.serve("--metrics", "127.0.0.1:0")
        place = ("--addr", "127.0.0.1", "--port", "0", "--file", str(servers.copy))
        other = servers.start("serve", *place, "--metrics", place_of(source))
        other.expect_exit(1)
        other.wait_for("can't listen: .*in use")


class TestMigrating:
    def test_both_ends(self, servers: Servers) -> None:
        source = servers.serve("--metrics", "127.0.0.1:0")
        destination = servers.listen("--metrics", "127.0.0.1:0")
        servers.start_mirroring_slowly()
        found = samples(scrape(source))
        assert found['flexmigrate_migration_running{export=""}'] == 1
        assert found['flexmigrate_migration_phase{export="",phase="copying"}'] == 1
        assert found['flexmigrate_migration_phase{export="",phase="parked"}'] == 0
        assert 0 < found['flexmigrate_migration_left_bytes{export=""}'] <= SIZE
        assert found['flexmigrate_migration_attempts_total{export=""}'] == 1
        at_its_end = samples(scrape(destination))
        assert at_its_end['flexmigrate_listening_phase{export="",phase="receiving"}'] == 1
        assert at_its_end['flexmigrate_export_owned{export=""}'] == 0
        assert flexmigrate("break", "--sock", str(servers.source_sock)).returncode == 0
        wait_until(servers.source_sock, is_mirroring="false")
        found = samples(scrape(source))
        assert found['flexmigrate_migrations_total{export="",verdict="broken"}'] == 1
        sent = found['flexmigrate_migration_sent_bytes_total{export=""}']
        assert sent > 0
        # What was counted stays, and the next is added to it.
        servers.start_mirroring_slowly()
        again = samples(scrape(source))
        assert again['flexmigrate_migration_attempts_total{export=""}'] == 2
        assert again['flexmigrate_migration_sent_bytes_total{export=""}'] >= sent
        stop(source, status=1)

    def test_a_destination_that_serves_then_goes_on_counting(self, servers: Servers) -> None:
        source = servers.serve()
        rebind = ("--rebind-addr", str(servers.folder / "nbd"))
        destination = servers.listen("--metrics", "127.0.0.1:0", *rebind)
        servers.start_mirroring()
        source.expect_exit(0)
        wait_until(servers.destination_sock, listening_phase="serving")
        found = samples(scrape(destination))
        assert found['flexmigrate_export_owned{export=""}'] == 1
        # What the sender wrote was counted here, too.
        assert found['flexmigrate_request_size_bytes_total{command="write",export=""}'] >= SIZE


class TestSettling:
    def test_a_handover_that_its_destination_has_to_confirm(self, servers: Servers) -> None:
        """The process before this one committed the image, and was killed."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = Address.tcp("127.0.0.1", silent.getsockname()[1])
            leave_committed(servers.image, address)
            sock = str(servers.source_sock)
            # That a place for it is taken is no reason not to settle it.
            taken = servers.start(*self.serve(servers), "--metrics", str(address))
            taken.wait_for("cannot serve HTTP: .*in use")
            taken.send(signal.SIGTERM)
            taken.expect_exit(1)
            asking = servers.start(*self.serve(servers), "--metrics", "127.0.0.1:0", "--sock", sock)
            found = samples(scrape(asking))
            assert found['flexmigrate_export_owned{export=""}'] == 0
            assert found['flexmigrate_export_size_bytes{export=""}'] == SIZE
            assert found['flexmigrate_migration_running{export=""}'] == 1
            assert found['flexmigrate_migration_phase{export="",phase="committing"}'] == 1
            assert found["flexmigrate_clients_allowed"] == 0
            told = status(servers.source_sock)
            assert (told["has_control"], told["migration_address"]) == ("false", str(address))
            code, refusal = ask(servers.source_sock, "mirror", "127.0.0.1", "1")
            assert code == 1
            assert "was handed over to" in refusal
            asking.send(signal.SIGTERM)
            asking.expect_exit(1)

    @staticmethod
    def serve(servers: Servers) -> tuple[str, ...]:
        return ("serve", "--addr", "127.0.0.1", "--port", "0", "--file", str(servers.image))
