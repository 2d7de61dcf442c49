"""Commands whose standard streams are full, closed, or read by nobody."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexmigrate.cli import output
from support.operator import status
from support.processes import PATIENCE, Child, Children, script
from support.raw_nbd import RawClient
from support.servers import Servers, servers_in, stop

FLEXMIGRATE = script("flexmigrate")

WITHOUT_A_SERVER = (
    "help",
    "help serve",
    "serve --help",
    "--version",
    "completion bash",
    "doctor",
    "doctor --json",
    "whose {image}",
    "whose --json {image}",
    "release --yes {image}",
)
WITH_A_SERVER = (
    "status --sock {sock}",
    "status --json --sock {sock}",
    "status --watch --sock {sock}",
    "acl --sock {sock}",
    "read {uri} --from 0 --size 1M",
)


@pytest.fixture
def servers(tmp_path: Path, children: Children) -> Iterator[Servers]:
    """A source's image, and what starts a server for it."""
    with servers_in(tmp_path, children) as pair:
        yield pair


def run(command: str, more: str) -> subprocess.CompletedProcess[str]:
    """Run a command line of ours in a shell, with redirections behind it."""
    line = f"{shlex.quote(FLEXMIGRATE)} {command} {more}"
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=PATIENCE)


def all_commands(servers: Servers) -> list[str]:
    """Return all of them, and have a server for those that need one."""
    other = servers.folder / "other"
    other.write_bytes(bytes(4096))
    host, port = servers.serve().listening()
    places = {"sock": servers.source_sock, "uri": f"nbd://{host}:{port}", "image": other}
    return [each.format(**places) for each in (*WITHOUT_A_SERVER, *WITH_A_SERVER)]


class TestOutput:
    @pytest.mark.parametrize(
        ("where", "why"),
        [("> /dev/full", "No space left on device"), (">&-", "Bad file descriptor")],
    )
    def test_that_can_not_be_written_is_one_line(
        self, servers: Servers, where: str, why: str
    ) -> None:
        for command in all_commands(servers):
            done = run(command, where)
            expected = f"flexmigrate: standard output: {why}\n"
            assert (done.returncode, done.stdout, done.stderr) == (1, "", expected), command

    def test_that_nobody_reads_is_no_error(self, servers: Servers) -> None:
        for command in all_commands(servers):
            pipe, end = os.pipe()
            os.close(pipe)
            done = subprocess.run(
                [FLEXMIGRATE, *shlex.split(command)],
                stdout=end,
                stderr=subprocess.PIPE,
                text=True,
                timeout=PATIENCE,
            )
            os.close(end)
            assert (done.returncode, done.stderr) == (1, ""), command

    def test_a_part_of_it_may_be_read(self, servers: Servers) -> None:
        host, port = servers.serve().listening()
        read = f"read nbd://{host}:{port} --from 0 --size 4M"
        done = run(read, "| head -c 5 | wc -c; exit ${PIPESTATUS[0]}")
        assert (done.returncode, done.stdout.strip(), done.stderr) == (1, "5", "")


class TestErrors:
    @pytest.mark.parametrize("where", ["2> /dev/full", "2>&-", "> /dev/full 2>&1", ">&- 2>&-"])
    def test_that_nobody_can_be_told_have_their_status(self, where: str) -> None:
        assert run("serve --nonsense", where).returncode == 2
        assert run("status --sock /nowhere", where).returncode == 1
        assert run("read nbd://127.0.0.1:1 --from 0 --size 1", where).returncode == 1

    def test_without_any_stream(self, servers: Servers) -> None:
        host, port = servers.serve().listening()
        uri = f"nbd://{host}:{port}"
        assert run(f"write {uri} --from 0 --size 5", "<&- >&- 2>&-").returncode == 1
        assert run(f"write {uri} --from 0 --size 5", "<<< hello >&- 2>&-").returncode == 0
        assert servers.image.read_bytes()[:5] == b"hello"
        assert run(f"take {servers.image}", "<&-").returncode == 1


class TestServers:
    @pytest.mark.parametrize("where", ["> /dev/full 2>&1", "<&- >&- 2>&-", ">&- 2>&-", "2>&-"])
    def test_the_log_stops_nobody_and_is_not_written_into_the_image(
        self, servers: Servers, where: str, twistd: bool
    ) -> None:
        before = servers.image.read_bytes()
        program = [script("twistd"), "-n", "--pidfile="] if twistd else []
        path = servers.folder / "nbd"
        words = [*program, *(["flexmigrate"] if twistd else [FLEXMIGRATE]), "serve"]
        words += ["--addr", str(path), "--file", str(servers.image), "-v"]
        words += ["--sock", str(servers.source_sock), "--log-requests"]
        server = servers.start_program("bash", "-c", f"exec {shlex.join(words)} {where}")
        wait_for(path, server)
        for _ in range(20):
            client = RawClient.to(str(path), 0)
            assert client.read(0, 4096) == before[:4096]
            client.close()
        assert status(servers.source_sock)
        stop(server)
        assert servers.image.read_bytes() == before


def wait_for(path: Path, server: Child) -> None:
    """Wait until a UNIX socket is there, whose server can't say so."""
    while not path.exists():
        assert server.running, server.story()


@pytest.fixture(params=["flexmigrate", "twistd"])
def twistd(request: pytest.FixtureRequest) -> bool:
    """Run the test under each runner; true for twistd."""
    return bool(request.param == "twistd")


class TestAnInterrupt:
    def test_between_a_write_and_its_return_repeats_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written: list[bytes] = []

        def write(fd: int, data: bytes) -> int:
            written.append(bytes(data))
            raise KeyboardInterrupt

        reading, writing = os.pipe()
        stream = output._stream(output._Output(writing), None)
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", write)
            stream.write("a line\n")
            with pytest.raises(KeyboardInterrupt):
                stream.flush()
        stream.close()
        os.close(writing)
        with open(reading, "rb") as rest:
            assert (written, rest.read()) == ([b"a line\n"], b"")
