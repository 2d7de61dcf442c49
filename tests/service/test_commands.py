"""The commands that do one thing and end: what they print, where, and their status."""

from __future__ import annotations

import subprocess

import pytest

from flexmigrate.cli.commands import COMMANDS
from support.images import MIB
from support.processes import flexmigrate, run, script
from support.servers import SIZE, Servers, stop


def place_of(servers: Servers, *more: str) -> tuple[str, ...]:
    """Start a server; return the options that lead to it."""
    address, port = servers.serve(*more).listening()
    return ("--addr", address, "--port", str(port))


class TestRead:
    @pytest.mark.parametrize(
        ("offset", "size"), [(0, SIZE), (0, 1), (SIZE - 1, 1), (511, 3), (MIB - 1, 2 * MIB + 2)]
    )
    def test_the_bytes_and_nothing_else_go_to_standard_output(
        self, servers: Servers, offset: int, size: int
    ) -> None:
        place = place_of(servers)
        done = flexmigrate("read", *place, "--from", str(offset), "--size", str(size))
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout == servers.image.read_bytes()[offset : offset + size]

    def test_over_the_oldstyle_handshake_and_a_unix_socket(self, servers: Servers) -> None:
        path = str(servers.folder / "nbd")
        server = servers.start("serve", "-l", path, "-f", str(servers.image), "--oldstyle")
        server.listening()
        done = flexmigrate("read", "-l", path, "-F", "4K", "-S", "1K")
        assert done.stdout == servers.image.read_bytes()[4096:5120]

    def test_beyond_the_end(self, servers: Servers) -> None:
        done = flexmigrate("read", *place_of(servers), "-F", str(SIZE - 1), "-S", "2")
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.startswith(b"flexmigrate: ")
        assert len(done.stderr.splitlines()) == 1

    def test_beyond_the_end_by_more_than_is_moved_at_once(self, servers: Servers) -> None:
        done = flexmigrate("read", *place_of(servers), "-F", "0", "-S", str(2 * SIZE))
        assert (done.returncode, done.stdout) == (1, b"")
        assert f"the export has {SIZE}".encode() in done.stderr

    def test_a_uri_that_makes_no_sense(self) -> None:
        done = flexmigrate("read", "http://192.0.2.1", "-F", "0", "-S", "1")
        assert (done.returncode, done.stdout) == (2, b"")
        assert b"the scheme must be one of nbd" in done.stderr

    def test_into_a_pipe_that_nobody_reads_to_its_end(self, servers: Servers) -> None:
        words = (script("flexmigrate"), "read", *place_of(servers), "-F", "0", "-S", str(SIZE))
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reader:
            assert reader.stdout is not None
            assert reader.stderr is not None
            assert reader.stdout.read(10) == servers.image.read_bytes()[:10]
            reader.stdout.close()
            complaint = reader.stderr.read()
            assert reader.wait(20) == 1
        assert b"Traceback" not in complaint

    def test_from_an_address_that_may_not(self, servers: Servers) -> None:
        place = place_of(servers, "127.0.0.2")
        done = flexmigrate("read", *place, "-F", "0", "-S", "1")
        assert done.returncode == 1
        assert b"flexmigrate: " in done.stderr
        done = flexmigrate("read", *place, "-F", "0", "-S", "1", "--bind", "127.0.0.2")
        assert done.returncode == 0

    def test_where_nobody_listens(self, servers: Servers) -> None:
        done = flexmigrate("read", "-l", str(servers.folder / "nobody"), "-F", "0", "-S", "1")
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"no connection to the server" in done.stderr


class TestWrite:
    def test_standard_input_is_written_and_flushed(self, servers: Servers) -> None:
        data = bytes(range(256)) * 10000
        before = servers.image.read_bytes()
        done = flexmigrate(
            *("write", *place_of(servers), "--from", "1000", "--size", str(len(data))), stdin=data
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        assert servers.image.read_bytes() == before[:1000] + data + before[1000 + len(data) :]

    def test_what_is_behind_the_size_is_left_alone(self, servers: Servers) -> None:
        before = servers.image.read_bytes()
        done = flexmigrate("write", *place_of(servers), "-F", "0", "-S", "4", stdin=b"too long")
        assert done.returncode == 0
        assert servers.image.read_bytes() == b"too " + before[4:]

    def test_an_input_that_is_too_short(self, servers: Servers) -> None:
        done = flexmigrate("write", *place_of(servers), "-F", "0", "-S", "10", stdin=b"short")
        assert done.returncode == 1
        assert b"standard input ended after 5 of 10 bytes" in done.stderr

    def test_beyond_the_end(self, servers: Servers) -> None:
        before = servers.image.read_bytes()
        done = flexmigrate(
            *("write", *place_of(servers), "-F", str(SIZE - 1), "-S", "2"), stdin=b"xx"
        )
        assert done.returncode == 1
        assert servers.image.read_bytes() == before

    def test_beyond_the_end_by_more_than_is_moved_at_once(self, servers: Servers) -> None:
        before = servers.image.read_bytes()
        words = ("write", *place_of(servers), "-F", "0", "-S", str(2 * SIZE))
        assert flexmigrate(*words, stdin=bytes(2 * SIZE)).returncode == 1
        assert servers.image.read_bytes() == before

    def test_to_a_read_only_server(self, servers: Servers) -> None:
        before = servers.image.read_bytes()
        done = flexmigrate(
            *("write", *place_of(servers, "--read-only"), "-F", "0", "-S", "1"), stdin=b"x"
        )
        assert done.returncode == 1
        assert servers.image.read_bytes() == before


class TestStatus:
    def test_is_one_line(self, servers: Servers) -> None:
        server = servers.serve()
        done = flexmigrate("status", "--sock", str(servers.source_sock))
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.count(b"\n") == 1
        assert done.stdout.startswith(f"pid={server.pid} size={SIZE} ".encode())

    @pytest.mark.parametrize(
        "command",
        [
            "status",
            "break",
            "acl",
            "mirror-max-bps 1",
            "converge force",
            "mirror -l 127.0.0.1 -p 1",
        ],
    )
    def test_where_no_server_is(self, servers: Servers, command: str) -> None:
        done = flexmigrate(*command.split(), "--sock", str(servers.source_sock))
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"no server answers on" in done.stderr

    def test_after_the_server_has_ended(self, servers: Servers) -> None:
        stop(servers.serve())
        assert flexmigrate("status", "--sock", str(servers.source_sock)).returncode == 1


class TestHelp:
    COMMANDS = (
        *("serve", "listen", "mirror", "wait", "break", "acl", "status", "mirror-max-bps"),
        *("converge", "read", "write", "whose", "take", "release", "doctor", "completion"),
    )

    @pytest.mark.parametrize("words", ["help", "--help", "-h"])
    def test_of_all_commands(self, words: str) -> None:
        done = flexmigrate(words)
        assert (done.returncode, done.stderr) == (0, b"")
        for command in self.COMMANDS:
            assert f"  {command} ".encode() in done.stdout

    @pytest.mark.parametrize("command", COMMANDS)
    def test_of_each(self, command: str) -> None:
        asked, told = flexmigrate("help", command), flexmigrate(command, "--help")
        assert asked.returncode == told.returncode == 0
        assert asked.stdout == told.stdout
        assert asked.stdout.startswith(f"usage: flexmigrate {command} ".encode())

    def test_every_command_has_one(self) -> None:
        assert set(self.COMMANDS) == set(COMMANDS)

    def test_twistd_knows_the_plugin_from_any_directory(self) -> None:
        done = run("sh", "-c", f"cd / && {script('twistd')} --help")
        assert b"flexmigrate" in done.stdout

    @pytest.mark.parametrize(
        "words",
        ["", "fly", "help fly", "mirror", "status --sock", "acl -s /s x", "read -l ::1 -p 1 -F x"],
    )
    def test_a_wrong_command_line_ends_with_two(self, words: str) -> None:
        done = flexmigrate(*words.split())
        assert (done.returncode, done.stdout) == (2, b"")
        assert done.stderr.startswith(b"flexmigrate: ")
        assert b"Traceback" not in done.stderr
