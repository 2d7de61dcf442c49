"""Clients are not parked for a handover that is known to come to nothing, with real processes."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import pytest

from support.faulty_filesystem import FaultyFilesystem, faulty_filesystem
from support.images import blank_image
from support.operator import ask, poll
from support.servers import SIZE, Servers

# A flush takes longer than clients may be parked.
FLUSH_SECONDS = 2.0
MAX_PARK = "1s"


class TestASlowFlush:
    @pytest.mark.parametrize("remedy", ["a quicker disk", "a longer --max-park"])
    def test_clients_are_not_parked_for_it(
        self, servers: Servers, tmp_path: Path, remedy: str
    ) -> None:
        with faulty_filesystem(tmp_path / "slow") as slow:
            servers.copy = blank_image(slow.folder / "copy", SIZE)
            source, destination = servers.serve(), servers.listen()
            client = servers.client(source)
            slow.slow("fsync", "copy", seconds=FLUSH_SECONDS)
            servers.start_mirroring("--max-park", MAX_PARK)
            seen = poll(servers.source_sock, lambda seen: "migration_obstacle" in seen)
            self.look(servers, seen, slow)
            assert client.write(0, b"x" * 4096) == 0
            source.wait_for("clients are not parked, since that would be in vain")
            if remedy == "a quicker disk":
                slow.clear()
            else:
                assert ask(servers.source_sock, "converge", "max-park=20s")[0] == 0
            source.expect_exit(0)
            destination.expect_exit(0)
            servers.is_copied()
        told = [line for line in source.lines if "would be in vain" in line]
        assert len(told) == 1

    def look(self, servers: Servers, seen: dict[str, str], slow: FaultyFilesystem) -> None:
        """See that it stays so for some flushes more, and that nobody has been parked."""
        assert "to flush what it was sent" in unquote(seen["migration_obstacle"])
        assert seen["migration_phase"] == "converging"
        slow.wait_for("fsync", "copy", slow.begun("fsync", "copy") + 2)
        seen = poll(servers.source_sock, lambda seen: "migration_obstacle" in seen)
        assert float(seen["migration_parked"]) == 0.0
        assert seen["migration_attempt"] == "1"
