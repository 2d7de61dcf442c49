"""Images on a filesystem that calls what isn't written back yet a hole: nothing is lost by that,
neither for clients nor in a migration, and everybody is told.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexmigrate.image.file import Image
from flexmigrate.migration.comparison.comparer import judge
from flexmigrate.migration.comparison.digests import digest_of_zeroes
from flexmigrate.wire.handover import ZEROES_DIGEST, Claim
from support.faulty_filesystem import FaultyFilesystem, faulty_filesystem
from support.images import MIB, assert_same, blank_image
from support.operator import status
from support.programs import Programs
from support.raw_nbd import RawClient
from support.servers import SIZE, Servers

PIECE = 64 * 1024


@pytest.fixture
def lazy(tmp_path: Path) -> Iterator[FaultyFilesystem]:
    """A FUSE filesystem with write-back."""
    with faulty_filesystem(tmp_path / "mounted", write_back=True) as mounted:
        yield mounted


@pytest.fixture
def blank(servers: Servers, lazy: FaultyFilesystem) -> Servers:
    """Have a source whose image is one hole there."""
    servers.image = blank_image(lazy.folder / "image", SIZE)
    return servers


def fill(client: RawClient, start: int, end: int, byte: bytes = b"x") -> None:
    """Write pieces of one byte."""
    for offset in range(start, end, PIECE):
        assert client.write(offset, byte * PIECE) == 0


class TestWhatClientsSee:
    def test_zeroes_over_data_are_read_as_zeroes(self, blank: Servers) -> None:
        client = blank.client(blank.serve())
        fill(client, 0, SIZE)
        fill(client, 0, SIZE, b"\0")
        assert client.read(0, SIZE) == bytes(SIZE)

    def test_copies_by_others_have_the_data(self, blank: Servers, tmp_path: Path) -> None:
        source = blank.serve()
        client, programs = blank.client(source), Programs()
        fill(client, MIB, 2 * MIB)
        host, port = source.listening()
        uri = f"nbd://{host}:{port}"
        said = json.loads(programs.run("nbdinfo", "--map", "--json", uri))
        assert [each["type"] for each in said] == [0]
        expected = client.read(0, SIZE)
        programs.run("nbdcopy", uri, str(tmp_path / "copy"))
        assert (tmp_path / "copy").read_bytes() == expected
        programs.run("qemu-img", "convert", "-O", "raw", uri, str(tmp_path / "another"))
        assert (tmp_path / "another").read_bytes() == expected


class TestAMigration:
    def test_it_brings_what_clients_read(self, blank: Servers) -> None:
        source = blank.serve()
        client = blank.client(source)
        fill(client, MIB, 2 * MIB)
        expected = client.read(0, SIZE)
        destination = blank.listen()
        blank.start_mirroring()
        blank.complete(source, destination)
        assert blank.copy.read_bytes() == expected

    def test_it_writes_what_is_zero_over_what_is_not(
        self, servers: Servers, lazy: FaultyFilesystem
    ) -> None:
        """The destination's disk has old data, some of it not written back."""
        image, servers.image = servers.image, blank_image(servers.folder / "blank", SIZE)
        servers.copy = Path(shutil.copy(image, lazy.folder / "copy"))
        servers.marker = lazy.folder / "copy.INCOMPLETE"
        source, destination = servers.serve(), servers.listen()
        servers.start_mirroring()
        servers.complete(source, destination)
        assert_same(servers.image, lazy.beneath / "copy")


class TestAClaim:
    """A destination compares what is there, and not what its filesystem makes of it."""

    def test_that_a_range_is_zeroes(self, lazy: FaultyFilesystem) -> None:
        image = Image.open(str(blank_image(lazy.folder / "image", 4 * MIB)))
        try:
            image.write(b"x" * PIECE, MIB)
            claims = [
                Claim(0, MIB, ZEROES_DIGEST),
                Claim(MIB, MIB, ZEROES_DIGEST),
                Claim(MIB, MIB, digest_of_zeroes(MIB)),
                Claim(2 * MIB, 2 * MIB, ZEROES_DIGEST),
            ]
            assert judge(image, claims) == [True, False, False, True]
        finally:
            image.close()


class TestWhatIsTold:
    def test_on_such_a_filesystem(self, blank: Servers) -> None:
        source = blank.serve()
        source.wait_for(
            r"warn .*image is on fuse.* not trusted to tell where it has holes \(a probe shows "
        )
        told = status(blank.source_sock)
        assert (told["filesystem"].split(".")[0], told["holes"]) == ("fuse", "unknown")

    def test_on_one_that_is_known(self, servers: Servers) -> None:
        source = servers.serve("--verbose")
        source.wait_for(r"debug .*image is on \S+, which is trusted to tell where it has holes")
        assert status(servers.source_sock)["holes"] == "trusted"
        servers.listen()
        assert status(servers.destination_sock)["holes"] == "trusted"
