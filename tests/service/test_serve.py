"""``serve`` as an operator and its clients see it: each option, each refusal, each address."""

from __future__ import annotations

import errno
import re
import signal
import socket
import stat
from pathlib import Path

import pytest

from support import raw_nbd
from support.images import MIB, allocated, blank_image
from support.operator import ask, status, wait_until
from support.privileges import BOUND_BY_PERMISSIONS, block_device, needs_root
from support.processes import Child, flexmigrate, script
from support.raw_nbd import READ, TRIM, WRITE, WRITE_ZEROES, RawClient, receive
from support.servers import SIZE, Servers, stop

LARGEST = 32 * MIB  # bytes in a request that every server has to take
MEMORY = 100 * MIB


def refused(server: Child, bind: str | None = None) -> bool:
    """Return whether the server closes a connection before it has sent a byte."""
    sock = raw_nbd.connect(*server.listening(), bind)
    try:
        return _first(sock) == b""
    finally:
        sock.close()


def _first(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1)
    except ConnectionResetError:
        return b""


def timer_of(port: int, client: RawClient) -> str:
    """Return what the kernel's table of connections has for a client's of *port* (proc(5))."""
    ends = f":{port:04X}", f":{client.sock.getsockname()[1]:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines():
        _, local, remote, _, _, timer, *_ = line.split()
        if local.endswith(ends[0]) and remote.endswith(ends[1]):
            return timer
    raise AssertionError(f"no connection {ends}")


class TestAddresses:
    @pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0", "::"])
    def test_tcp(self, servers: Servers, host: str) -> None:
        server = servers.start("serve", "-l", host, "-p", "0", "-f", str(servers.image))
        assert server.listening()[0] == host
        client = servers.client(server)
        assert client.read(0, SIZE) == servers.image.read_bytes()

    def test_a_unix_socket(self, servers: Servers) -> None:
        path = servers.folder / "nbd"
        server = servers.start("serve", "-l", str(path), "-f", str(servers.image))
        client = servers.client(server)
        assert client.read(0, SIZE) == servers.image.read_bytes()
        stop(server)
        assert not path.exists()

    def test_the_file_of_a_server_that_was_killed_is_in_nobodys_way(self, servers: Servers) -> None:
        path = servers.folder / "nbd"
        words = ("serve", "-l", str(path), "-f", str(servers.image), "-s", str(servers.source_sock))
        killed = servers.start(*words)
        killed.listening()
        killed.send(signal.SIGKILL)
        killed.wait()
        assert path.is_socket()
        assert servers.source_sock.is_socket()
        server = servers.start(*words)
        assert servers.client(server).size == SIZE
        assert status(servers.source_sock)["pid"] == str(server.pid)

    def test_the_file_of_a_living_server_is_left_alone(self, servers: Servers) -> None:
        path = servers.folder / "nbd"
        first = servers.start("serve", "-l", str(path), "-f", str(servers.image))
        first.listening()
        second = servers.start("serve", "-l", str(path), "-f", str(servers.copy))
        second.expect_exit(1)
        second.wait_for(f"{re.escape(str(path))} is in use by another server")
        assert servers.client(first).size == SIZE

    def test_what_is_no_socket_is_not_replaced(self, servers: Servers) -> None:
        server = servers.start("serve", "-l", str(servers.copy), "-f", str(servers.image))
        server.expect_exit(1)
        server.wait_for("exists, and is not a socket")
        assert servers.copy.stat().st_size == SIZE

    def test_a_port_that_is_taken(self, servers: Servers, twistd: bool) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            server = servers.start(
                *("serve", "-l", "127.0.0.1", "-p", port, "-f", str(servers.image)), twistd=twistd
            )
            server.expect_exit(1)
            server.wait_for(rf"can't listen: .*127\.0\.0\.1:{port}: .*in use")

    def test_an_address_of_another_host(self, servers: Servers) -> None:
        server = servers.start(*("serve", "-l", "192.0.2.1", "-p", "0", "-f", str(servers.image)))
        server.expect_exit(1)
        server.wait_for(r"can't listen: .*192\.0\.2\.1:0: .*assign requested address")

    def test_what_every_connection_has(self, servers: Servers) -> None:
        server = servers.serve()
        client = servers.client(server)
        # proc(5): timer 2 is the keepalive's. Until the last answer is acknowledged it is another.
        timer, jiffies = "01", ""
        while timer == "01":
            timer, _, jiffies = timer_of(server.listening()[1], client).partition(":")
            assert timer in ("01", "02")
        assert 0 < int(jiffies, 16) <= 30 * 100


class TestTheOperatorsSocket:
    def test_only_its_owner_can_use_it_and_it_goes_with_the_server(self, servers: Servers) -> None:
        server = servers.serve()
        assert stat.S_IMODE(servers.source_sock.stat().st_mode) == 0o600
        stop(server)
        assert not servers.source_sock.exists()

    def test_one_that_is_in_use(self, servers: Servers) -> None:
        first = servers.serve()
        second = servers.start(
            *("serve", "-l", "127.0.0.1", "-p", "0", "-f", str(servers.copy)),
            *("-s", str(servers.source_sock)),
        )
        second.expect_exit(1)
        second.wait_for("is in use by another server")
        assert status(servers.source_sock)["pid"] == str(first.pid)

    def test_one_that_cannot_be_made(self, servers: Servers) -> None:
        server = servers.start(
            *("serve", "-l", "127.0.0.1", "-p", "0", "-f", str(servers.image)),
            *("-s", str(servers.folder / "nowhere" / "sock")),
        )
        server.expect_exit(1)
        server.wait_for("nowhere/sock: No such file or directory")

    def test_without_one_the_server_serves_all_the_same(self, servers: Servers) -> None:
        server = servers.start("serve", "-l", "127.0.0.1", "-p", "0", "-f", str(servers.image))
        assert servers.client(server).size == SIZE
        stop(server)


class TestWhoMayConnect:
    def test_everybody_if_nothing_is_said(self, servers: Servers) -> None:
        assert not refused(servers.serve())

    def test_those_who_are_listed(self, servers: Servers) -> None:
        server = servers.serve("127.0.0.2", "127.8.0.0/16")
        assert refused(server, bind="127.0.0.1")
        assert not refused(server, bind="127.0.0.2")
        assert not refused(server, bind="127.8.9.9")
        server.wait_for("refused a connection from 127.0.0.1: the access list doesn't allow it")

    def test_nobody_if_it_is_denied_by_default(self, servers: Servers) -> None:
        server = servers.serve("--default-deny")
        assert refused(server)
        assert ask(servers.source_sock, "acl", "127.0.0.1") == (0, "updated")
        assert not refused(server)
        assert ask(servers.source_sock, "acl") == (0, "updated")
        assert refused(server)

    def test_those_on_this_host_if_it_is_a_unix_socket(self, servers: Servers) -> None:
        path = str(servers.folder / "nbd")
        assert not refused(servers.start("serve", "-l", path, "-f", str(servers.image), "-d"))

    def test_an_ipv4_client_of_an_ipv6_address(self, servers: Servers) -> None:
        server = servers.start(
            "serve", "-l", "::", "-p", "0", "-f", str(servers.image), "127.0.0.2"
        )
        _, port = server.listening()
        for bind, allowed in (("127.0.0.2", True), ("127.0.0.1", False)):
            sock = raw_nbd.connect("127.0.0.1", port, bind)
            assert bool(_first(sock)) is allowed
            sock.close()

    def test_a_changed_list_applies_at_once_to_those_who_are_connected(
        self, servers: Servers
    ) -> None:
        server = servers.serve()
        address, port = server.listening()
        stays = RawClient.to(address, port, bind="127.0.0.2")
        goes = [RawClient.to(address, port, bind="127.0.0.1") for _ in range(3)]
        negotiates = raw_nbd.connect(address, port, "127.0.0.1")
        receive(negotiates, 18)
        answer = flexmigrate("acl", "--sock", str(servers.source_sock), "127.0.0.2")
        assert (answer.returncode, answer.stdout) == (0, b"updated\n")
        for client in goes:
            client.expect_end()
            client.close()
        raw_nbd.expect_end(negotiates)
        negotiates.close()
        assert stays.read(0, 4096) == servers.image.read_bytes()[:4096]
        wait_until(servers.source_sock, num_clients="1")
        stays.say_goodbye()
        assert refused(server, bind="127.0.0.1")
        assert refused(server, bind="127.0.0.3")

    def test_a_bad_entry_changes_nothing(self, servers: Servers) -> None:
        server = servers.serve("127.0.0.1")
        code, text = ask(servers.source_sock, "acl", "127.0.0.2", "127.0.0.300")
        assert code == 1
        assert "127.0.0.300" in text
        assert not refused(server, bind="127.0.0.1")
        assert refused(server, bind="127.0.0.2")


class TestHandshakes:
    def test_newstyle_is_the_default(self, servers: Servers) -> None:
        sock = raw_nbd.connect(*servers.serve().listening())
        assert receive(sock, 16) == raw_nbd.INIT_MAGIC + raw_nbd.OPTION_MAGIC
        sock.close()

    def test_oldstyle(self, servers: Servers) -> None:
        server = servers.serve("--oldstyle")
        sock = raw_nbd.connect(*server.listening())
        greeting = receive(sock, 152)
        assert greeting[:8] == raw_nbd.INIT_MAGIC
        assert int.from_bytes(greeting[8:16], "big") == raw_nbd.OLDSTYLE_MAGIC
        assert int.from_bytes(greeting[16:24], "big") == SIZE
        # Reserved bytes, which clients skip: a source of a migration reads there that it serves.
        assert greeting[28:] == b"fmig" + (1).to_bytes(4, "big") + bytes(116)
        sock.close()
        client = servers.client(server)
        assert client.write(4096, b"x" * 4096) == 0
        assert client.read(4096, 4096) == b"x" * 4096

    def test_a_name_for_the_export(self, servers: Servers) -> None:
        server = servers.serve("--export", "disk é")
        address, port = server.listening()
        for name in ("disk é", ""):  # the only one is the default, too
            RawClient.to(address, port, export=name).say_goodbye()
        with pytest.raises(raw_nbd.ProtocolViolation, match="GO was answered 0x80000006"):
            RawClient.to(address, port, export="another")


class TestWhatAClientIsTold:
    def test_an_unknown_command_is_einval_and_the_connection_lives(self, servers: Servers) -> None:
        client = servers.client(servers.serve())
        assert client.call(99) == raw_nbd.EINVAL
        assert client.flush() == 0

    @pytest.mark.parametrize("offset", [SIZE, SIZE - 512, 2**63, 2**64 - 4096])
    def test_what_lies_outside_the_export(self, servers: Servers, offset: int) -> None:
        client = servers.client(servers.serve())
        assert client.call(READ, offset, 4096) == raw_nbd.EINVAL
        assert client.write(offset, b"z" * 4096) == raw_nbd.ENOSPC
        assert client.call(TRIM, offset, 4096) in (raw_nbd.EINVAL, raw_nbd.ENOSPC)
        assert client.call(WRITE_ZEROES, offset, 4096) == raw_nbd.ENOSPC
        assert client.read(SIZE - 512, 512) == servers.image.read_bytes()[-512:]

    def test_bad_magic_costs_the_connection_and_nobody_elses(self, servers: Servers) -> None:
        server = servers.serve()
        bad, good = servers.client(server), servers.client(server)
        bad.sock.sendall(b"\0" * 28)
        bad.end_of_the_conversation()
        assert good.flush() == 0

    def test_read_only(self, servers: Servers) -> None:
        servers.image.chmod(0o400)
        server = servers.serve("--read-only")
        before = servers.image.read_bytes()
        client = servers.client(server)
        assert client.flags & raw_nbd.READ_ONLY
        assert client.write(0, b"x" * 4096) == errno.EPERM
        assert client.call(TRIM, 0, 4096) == errno.EPERM
        assert client.read(0, SIZE) == before
        stop(server)
        assert servers.image.read_bytes() == before

    def test_sparse_stays_sparse(self, servers: Servers) -> None:
        blank_image(servers.image, SIZE)
        client = servers.client(servers.serve())
        assert client.write(0, bytes(SIZE)) == 0
        assert allocated(servers.image) == 0
        for command in (TRIM, WRITE_ZEROES):
            assert client.write(0, b"\1" * MIB) == 0
            assert client.flush() == 0
            assert allocated(servers.image) >= MIB
            assert client.call(command, 0, MIB) == 0
            assert allocated(servers.image) == 0
        assert client.read(0, SIZE) == bytes(SIZE)

    def test_an_image_that_is_truncated_while_it_is_served_is_an_error_and_no_end(
        self, servers: Servers
    ) -> None:
        server = servers.serve()
        client = servers.client(server)
        with servers.image.open("r+b") as image:
            image.truncate(MIB)
        assert client.call(READ, SIZE - 4096, 4096) == raw_nbd.EIO
        assert client.read(0, 4096) == servers.image.read_bytes()[:4096]
        stop(server)


class TestTheImage:
    def test_two_servers_cannot_write_to_one(self, servers: Servers) -> None:
        servers.serve()
        for more in ((), ("--read-only",)):
            second = servers.start(
                *("serve", "-l", "127.0.0.1", "-p", "0", "-f", str(servers.image), *more)
            )
            second.expect_exit(1)
            second.wait_for(f"the image {re.escape(str(servers.image))} is in use by another")

    def test_any_number_can_read_one(self, servers: Servers) -> None:
        words = ("serve", "-l", "127.0.0.1", "-p", "0", "-f", str(servers.image), "--read-only")
        for server in [servers.start(*words) for _ in range(3)]:
            assert servers.client(server).size == SIZE

    def test_it_is_free_as_soon_as_its_server_has_died(self, servers: Servers) -> None:
        server = servers.serve()
        server.send(signal.SIGKILL)
        server.wait()
        stop(servers.serve())

    @pytest.mark.parametrize(
        ("name", "complaint"),
        [
            ("nothing", "cannot open the image .*/nothing: No such file or directory"),
            (".", "neither a regular file nor a block device"),
            ("copy/inner", "Not a directory"),
        ],
    )
    def test_what_cannot_be_served(self, servers: Servers, name: str, complaint: str) -> None:
        path = f"{servers.folder}/{name}"
        server = servers.start("serve", "-l", "::1", "-p", "0", "-f", path)
        server.expect_exit(1)
        server.wait_for(complaint)
        assert not any("Traceback" in line for line in server.lines)

    @pytest.mark.parametrize("command", ["serve", "listen"])
    def test_without_permission(self, servers: Servers, command: str) -> None:
        servers.image.chmod(0)
        server = servers.children.start(
            *BOUND_BY_PERMISSIONS,
            *(script("flexmigrate"), command, "-l", "::1", "-p", "0", "-f", str(servers.image)),
        )
        server.expect_exit(1)
        server.wait_for("Permission denied")

    def test_an_unfinished_copy(self, servers: Servers) -> None:
        servers.marker.touch()
        for more in ((), ("--read-only",)):
            server = servers.start(
                *("serve", "-l", "::1", "-p", "0", "-f", str(servers.copy), *more)
            )
            server.expect_exit(1)
            server.wait_for(f"{re.escape(str(servers.copy))} is incomplete")

    @needs_root
    def test_a_block_device(self, servers: Servers) -> None:
        with block_device(servers.image) as device:
            words = ("serve", "-l", "127.0.0.1", "-p", "0", "-f", str(device))
            server = servers.start(*words, "-s", str(servers.source_sock))
            client = servers.client(server)
            assert client.size == SIZE
            assert client.read(0, SIZE) == servers.image.read_bytes()
            assert client.write(8192, b"device" * 512) == 0
            assert client.call(WRITE_ZEROES, 0, 4096) == 0
            assert client.call(TRIM, MIB, MIB) == 0
            assert client.flush() == 0
            second = servers.start(*words)
            second.expect_exit(1)
            second.wait_for("in use|busy")
            # A device has no name to take away.
            answer = ask(servers.source_sock, "mirror", "127.0.0.1", "1", "unlink")
            assert answer[0] == 1
            assert "can't be unlinked" in answer[1]
            destination = servers.listen()
            servers.start_mirroring()
            servers.complete(server, destination)
        copy = servers.copy.read_bytes()
        assert copy[:4096] == bytes(4096)
        assert copy[8192 : 8192 + 3072] == b"device" * 512


class TestTheEnd:
    @pytest.mark.parametrize("command", ["serve", "listen"])
    def test_who_says_that_it_listens_can_be_told_to_end_at_once(
        self, servers: Servers, command: str, twistd: bool
    ) -> None:
        for _ in range(3):
            server = servers.start(
                *(command, "-l", "127.0.0.1", "-p", "0", "-f", str(servers.copy)), twistd=twistd
            )
            server.listening()
            stop(server, status=0 if command == "serve" else 1)
            servers.marker.unlink(missing_ok=True)

    @pytest.mark.parametrize(
        ("twistd", "number"),
        [
            (False, signal.SIGTERM),
            (True, signal.SIGTERM),
            (False, signal.SIGINT),
            (True, signal.SIGQUIT),
        ],
    )
    def test_a_signal_ends_it_with_zero_and_its_clients_with_it(
        self, servers: Servers, twistd: bool, number: signal.Signals
    ) -> None:
        server = servers.serve(twistd=twistd)
        clients = [servers.client(server) for _ in range(3)]
        assert clients[0].write(0, b"last words" * 51 + b"..") == 0
        server.send(number)
        for client in clients:
            client.expect_end()
        server.expect_exit(0)
        assert servers.image.read_bytes().startswith(b"last words")

    def test_a_client_that_reads_nothing_does_not_keep_it(self, servers: Servers) -> None:
        server = servers.serve()
        client = servers.client(server)
        for _ in range(16):
            client.send(READ, 0, SIZE)
        stop(server)

    def test_a_client_that_stays_silent_in_mid_request_does_not_keep_it(
        self, servers: Servers
    ) -> None:
        server = servers.serve()
        client = servers.client(server)
        client.sock.sendall(raw_nbd.request(WRITE, 1, 0, 4096) + b"x" * 100)
        other = servers.client(server)
        assert other.flush() == 0
        stop(server)


def peak_memory(process: Child) -> int:
    """Return the most memory that the process has ever had resident, in bytes (proc(5))."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def test_memory_stays_small_with_large_requests_of_many_clients(servers: Servers) -> None:
    blank_image(servers.image, 2 * LARGEST)
    server = servers.serve()
    clients = [servers.client(server) for _ in range(8)]
    payload = b"\7" * LARGEST
    for client in clients:
        assert client.write(LARGEST, payload) == 0
    for client in clients:
        client.send(READ, LARGEST, LARGEST)
    for client in clients:
        assert client.reply().error == 0
        assert receive(client.sock, LARGEST) == payload
    assert peak_memory(server) < MEMORY


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("serve", "--addr is required"),
        ("serve --addr here --port 1 --file x", "--addr: 'here'"),
        ("listen --addr ::1 --port 70000 --file x", "--port: '70000'"),
        ("listen --addr ::1 --port 1 --file x 10.0.0.0/99", "ACL_ENTRY"),
        ("serve --addr ::1 --port 1 --file x --fly", "--fly"),
    ],
)
def test_a_wrong_command_line_ends_with_two(
    servers: Servers, words: str, complaint: str, twistd: bool
) -> None:
    server = servers.start(*words.split(), twistd=twistd)
    server.expect_exit(2)
    server.wait_for(re.escape(complaint))
    assert not any("Traceback" in line for line in server.lines)


def test_an_access_list_that_has_no_effect_is_told_of(servers: Servers) -> None:
    path = str(servers.folder / "nbd")
    server = servers.start("serve", "--addr", path, "--file", str(servers.image), "--default-deny")
    server.wait_for("warn .*the access list has no effect here")
    server.wait_for("listening on")  # from here on it can be told to end
    stop(server)
    server = servers.serve("--default-deny", f"--endpoint=unix:{path}")
    assert "has no effect" not in server.story()
