"""A read-only export that migrates: nobody may write to it where it arrives, either."""

from __future__ import annotations

import errno

import pytest

from support import raw_nbd
from support.operator import status
from support.raw_nbd import RawClient
from support.servers import Servers, stop


def assert_read_only(client: RawClient, *, expected: bool) -> None:
    assert bool(client.flags & raw_nbd.READ_ONLY) is expected
    answer = client.write(0, b"w" * 512)
    client.close()
    assert answer == (errno.EPERM if expected else 0)


@pytest.mark.parametrize(
    ("source", "destination", "mirror", "expected"),
    [
        ((), (), (), False),
        (("--read-only",), (), (), True),
        ((), ("--read-only",), (), True),
        # It has no way to say so.
        (("--read-only",), (), ("--handover", "plain"), False),
        ((), ("--read-only",), ("--handover", "plain"), True),
    ],
)
def test_what_arrives_is_as_it_was(
    servers: Servers,
    port: int,
    source: tuple[str, ...],
    destination: tuple[str, ...],
    mirror: tuple[str, ...],
    expected: bool,
) -> None:
    serving = servers.serve(*source)
    listening = servers.listen("--rebind-port", str(port), *destination)
    servers.start_mirroring(*mirror)
    serving.expect_exit(0)
    listening.wait_for(f"listening on 127.0.0.1:{port}")
    assert_read_only(RawClient.to("127.0.0.1", port), expected=expected)
    stop(listening)
    # Whoever serves it next decides, and is warned.
    words = ("serve", "--addr", "127.0.0.1", "--port", "0", "--file", str(servers.copy))
    for more in ((), ("--read-only",)):
        again = servers.start(*words, *more)
        assert_read_only(RawClient.to(*again.listening()), expected=bool(more))
        stop(again)
        warned = "was read-only where it came from" in again.story()
        assert warned is (expected and not more)


def test_what_a_second_server_reads_is_not_given_away(servers: Servers) -> None:
    serving = servers.serve("--read-only")
    words = ("serve", "--addr", "127.0.0.1", "--port", "0", "--file", str(servers.image))
    second = servers.start(*words, "--read-only")
    second.listening()
    listening = servers.listen()
    answer = servers.mirror()
    assert answer.returncode == 1
    assert f"another program reads the image, too (process {second.pid}, " in answer.stderr.decode()
    assert status(servers.source_sock)["is_mirroring"] == "false"
    stop(second)
    servers.start_mirroring()
    serving.expect_exit(0)
    listening.expect_exit(0)
    servers.is_copied()
