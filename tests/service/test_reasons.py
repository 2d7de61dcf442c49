"""Each end of a migration reads in its log why the other has ended it."""

from __future__ import annotations

import signal

import pytest

from support.certificates import PKI
from support.operator import wait_until
from support.servers import Servers, stop


@pytest.mark.parametrize("encrypted", [False, True])
class TestADestinationThatEnds:
    def options(self, pki: PKI, encrypted: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
        if not encrypted:
            return (), ()
        return (
            ("--tls", "require", "--tls-certificates", str(pki.ours)),
            (
                "--tls",
                "require",
                "--tls-certificates",
                str(pki.ours),
                "--tls-hostname",
                "localhost",
            ),
        )

    def test_because_of_a_signal(self, servers: Servers, pki: PKI, encrypted: bool) -> None:
        here, there = self.options(pki, encrypted)
        source, destination = servers.serve(), servers.listen(*here)
        servers.start_mirroring_slowly(*there)
        stop(destination, 1)
        source.wait_for("attempt 1 failed: at the destination, .*: this server ends: SIGTERM")
        stop(source, 1)

    def test_because_its_file_is_gone(self, servers: Servers, pki: PKI, encrypted: bool) -> None:
        here, there = self.options(pki, encrypted)
        source, destination = servers.serve(), servers.listen(*here)
        servers.start_mirroring_slowly(*there)
        servers.copy.unlink()
        destination.expect_exit(1)
        source.wait_for(
            f"attempt 1 failed: at the destination, .*this server ends: .*{servers.copy}"
        )
        seen = wait_until(servers.source_sock, is_mirroring="true")
        assert seen["migration_error"]
        source.send(signal.SIGTERM)
        source.expect_exit(1)
