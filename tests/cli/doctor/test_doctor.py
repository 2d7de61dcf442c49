"""What the doctor sees: each thing sound, and each thing wrong in the way that it looks for."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import resource
import socket
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from twisted.internet import reactor

from flexmigrate.cli.doctor import certificates, findings, host, images, places
from flexmigrate.cli.doctor.findings import Finding, Level
from flexmigrate.config import ListenConfig
from flexmigrate.image.file import Image
from flexmigrate.image.flush_failure import FileNote, FlushFailure
from flexmigrate.migration.request import TLSConfig
from flexmigrate.net import accepting
from flexmigrate.net.address import Address
from flexmigrate.service.descriptors import SPARE
from support.certificates import PKI
from support.images import random_image
from support.privileges import block_device, needs_root
from support.processes import flexmigrate
from support.servers import Servers

SIZE = 1 << 20


def bad(found: Iterable[Finding]) -> list[tuple[Level, str]]:
    """Return what isn't well; each of these has an advice.

    Tests may run in a folder in memory, which isn't well at all.
    """
    in_memory = "are gone when the host is started again"
    listed = [each for each in found if each.level is not Level.OK and in_memory not in each.text]
    assert all(each.advice for each in listed), listed
    return [(each.level, f"{each.about}: {each.text}") for each in listed]


def assert_bad(found: Iterable[Finding], level: Level, *texts: str) -> None:
    """There is one thing that isn't well, of this level, and its text has each of *texts*."""
    ((seen, text),) = bad(found)
    assert seen is level
    for each in texts:
        assert each in text, text


@pytest.fixture
def image(tmp_path: Path) -> str:
    return str(random_image(tmp_path / "image", SIZE))


class TestImages:
    @pytest.mark.parametrize("receives", [False, True])
    def test_a_sound_one(self, image: str, receives: bool) -> None:
        found = list(images.look(image, receives=receives))
        assert bad(found) == []
        assert f"{SIZE} bytes" in [each.text for each in found]

    def test_nothing_is_changed_and_nothing_left(self, image: str) -> None:
        before = Path(image).read_bytes(), sorted(os.listdir(Path(image).parent))
        descriptors = len(os.listdir("/proc/self/fd"))
        list(images.look(image))
        assert (Path(image).read_bytes(), sorted(os.listdir(Path(image).parent))) == before
        assert len(os.listdir("/proc/self/fd")) == descriptors

    def test_one_that_is_not_there(self, tmp_path: Path) -> None:
        assert_bad(images.look(f"{tmp_path}/no"), Level.PROBLEM, "No such file")

    def test_what_is_no_image(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        for path in (tmp_path, tmp_path / "fifo"):
            assert_bad(images.look(str(path)), Level.PROBLEM, "neither a regular file")

    def test_its_size(self, image: str) -> None:
        os.truncate(image, SIZE + 5)
        assert_bad(images.look(image), Level.WARNING, "--oldstyle don't see the last 5")
        os.truncate(image, 0)
        assert_bad(images.look(image), Level.PROBLEM, "it is empty")

    def test_one_that_is_in_use(self, image: str) -> None:
        used = Image.open(image)
        try:
            text = f"locked by process {os.getpid()}"
            assert_bad(images.look(image), Level.PROBLEM, text)
        finally:
            used.close()
        assert bad(images.look(image)) == []

    def test_it_takes_no_lock_itself(self, image: str) -> None:
        for _ in images.look(image):
            Image.open(image).close()

    def test_another_files_lock_is_no_concern(self, image: str, tmp_path: Path) -> None:
        with open(tmp_path / "other", "w") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            assert bad(images.look(image)) == []

    def test_a_flush_that_failed(self, image: str) -> None:
        fd = os.open(image, os.O_RDWR)
        try:
            inode = os.fstat(fd).st_ino
            note = FileNote(fd, os.path.realpath(image), inode, is_block_device=False)
            note.keep(FlushFailure(errno.ENOSPC, 1_700_000_000))
        finally:
            os.close(fd)
        assert_bad(images.look(image), Level.WARNING, "a flush of it failed", "ENOSPC")

    def test_an_unfinished_copy(self, image: str) -> None:
        Path(f"{image}.INCOMPLETE").touch()
        assert_bad(images.look(image), Level.PROBLEM, "never finished")
        assert bad(images.look(image, receives=True)) == []

    def test_a_journal_that_can_not_be_trusted(self, image: str) -> None:
        Path(f"{image}.handover").write_text("nonsense")
        assert_bad(images.look(image), Level.PROBLEM, "can't be trusted")

    def test_one_that_may_outgrow_its_filesystem(self, image: str) -> None:
        os.truncate(image, 1 << 43)  # no disk of a test's machine has that much free
        assert_bad(images.look(image), Level.WARNING, "sparse", "are free")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_folder_for_records(self, image: str, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        try:
            assert_bad(images.look(image), Level.PROBLEM, "can't be written to")
        finally:
            tmp_path.chmod(0o700)

    @needs_root
    def test_a_block_device(self, image: str) -> None:
        with block_device(Path(image)) as device:
            found = list(images.look(str(device)))
            assert "a block device" in [each.text for each in found]
            assert f"{SIZE} bytes" in [each.text for each in found]
            (records,) = [each for each in found if "records of the image" in each.text]
            assert records.about != "/dev"

    def test_what_a_filesystem_lacks_is_named_with_its_price(
        self, image: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr("flexmigrate.cli.doctor.images.linux.fallocate", refuse)
        monkeypatch.setattr("flexmigrate.cli.doctor.images.os.preadv", refuse)
        assert_bad(images.look(image), Level.WARNING, "RWF_NOWAIT", "punching holes")


class TestPlaces:
    def test_a_free_address(self) -> None:
        for address in (Address.tcp("127.0.0.1", 0), Address.tcp("::1", 0)):
            assert bad(places.look(reactor, address)) == []

    def test_one_that_is_taken(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = Address.tcp("127.0.0.1", taken.getsockname()[1])
            assert_bad(places.look(reactor, address), Level.PROBLEM, "in use")
            assert bad(places.look_at_later(address)) == []

    def test_one_that_is_not_of_this_host(self) -> None:
        address = Address.tcp("192.0.2.1", 10809)
        assert_bad(places.look(reactor, address), Level.PROBLEM, "assign requested address")
        assert_bad(places.look_at_later(address), Level.WARNING, "not an address of this host")

    def test_unix_sockets(self, tmp_path: Path) -> None:
        path = tmp_path / "nbd"
        address = Address.unix(str(path))
        assert bad(places.look(reactor, address)) == []
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as listening:
            listening.bind(str(path))
            listening.listen()
            assert_bad(places.look(reactor, address), Level.PROBLEM, "in use")
            assert bad(places.look_at_later(address)) == []
        assert bad(places.look(reactor, address)) == []  # dead
        assert path.exists()
        path.unlink()
        path.touch()
        assert_bad(places.socket_for_the_operator(str(path)), Level.PROBLEM, "no socket")
        missing = Address.unix(f"{tmp_path}/no/nbd")
        assert_bad(places.look(reactor, missing), Level.PROBLEM, "there is no folder")

    def test_descriptions(self) -> None:
        assert bad(places.look(reactor, "tcp:10809")) == []
        assert_bad(places.look(reactor, "fly:1"), Level.PROBLEM, "Unknown endpoint type")
        described = "systemd:domain=INET:index=0"
        assert_bad(places.look(reactor, described), Level.WARNING, "no socket was passed")


class TestCertificates:
    def look(self, folder: Path, days: float = 0) -> Iterator[Finding]:
        now = datetime.now(timezone.utc) + timedelta(days=days)
        return certificates.look(TLSConfig("require", str(folder)), now)

    @pytest.fixture
    def folder(self, pki: PKI, tmp_path: Path) -> Path:
        folder = pki.authority.folder(tmp_path / "tls", "server", "client")
        for key in folder.glob("*-key.pem"):
            key.chmod(0o600)
        return folder

    def test_without_tls_there_is_nothing_to_see(self) -> None:
        assert list(certificates.look(TLSConfig())) == []

    def test_the_end_of_a_certificate_is_told_before_it_comes(self, folder: Path) -> None:
        # Those of the tests live for a day.
        soon = bad(self.look(folder))
        assert [level for level, _ in soon] == [Level.WARNING] * 3
        assert all("expires on" in text for _, text in soon)

    def test_one_that_has_come_to_its_end(self, folder: Path) -> None:
        gone = bad(self.look(folder, days=2))
        assert [level for level, _ in gone] == [Level.PROBLEM] * 3
        assert all("expired on" in text for _, text in gone)

    def test_one_of_the_future(self, folder: Path) -> None:
        early = bad(self.look(folder, days=-3000))
        assert [level for level, _ in early] == [Level.PROBLEM] * 3
        assert all("not valid before" in text for _, text in early)

    def problems(self, folder: Path) -> list[str]:
        return [text for level, text in bad(self.look(folder)) if level is Level.PROBLEM]

    def test_a_key_of_another_certificate(self, folder: Path, pki: PKI) -> None:
        other = (pki.theirs / "server-key.pem").read_bytes()
        (folder / "server-key.pem").write_bytes(other)
        (text,) = self.problems(folder)
        assert "do not belong together" in text

    def test_what_is_missing(self, folder: Path) -> None:
        (folder / "server-cert.pem").unlink()
        (text,) = self.problems(folder)
        assert "server-cert.pem: No such file" in text

    def test_a_key_that_others_can_read(self, folder: Path) -> None:
        (folder / "server-key.pem").chmod(0o644)
        texts = [text for _, text in bad(self.look(folder)) if "others can read it" in text]
        assert len(texts) == 1

    def test_no_authority(self, folder: Path) -> None:
        (folder / "ca-cert.pem").unlink()
        texts = [text for _, text in bad(self.look(folder)) if "ca-cert.pem" in text]
        assert len(texts) == 1


class TestHost:
    def test_this_one(self) -> None:
        assert bad(host.look(1)) == []

    def test_what_waits_for_cold_reads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Forbidden:
            def __init__(self) -> None:
                raise PermissionError(errno.EPERM, "not allowed")

        monkeypatch.setattr(host, "Ring", Forbidden)
        (each,) = [each for each in host.look(1) if each.about == "cold reads"]
        assert each.level is Level.OK
        assert "by threads" in each.text
        assert "no io_uring (not allowed)" in each.text

    def test_a_limit_on_descriptors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
        assert bad(host.look(4096 - SPARE)) == []
        (each,) = [each for each in host.look(10000) if each.level is Level.WARNING]
        assert f"4096 allowed: enough for {4096 - SPARE} clients" in each.text
        assert f"LimitNOFILE={10000 + SPARE}" in each.advice

    def test_a_short_queue(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        setting = tmp_path / "somaxconn"
        monkeypatch.setattr(accepting, "SOMAXCONN", setting)
        setting.write_text("128\n")
        assert bad(host.look(128)) == []
        (each,) = [each for each in host.look(129) if each.level is Level.WARNING]
        assert "128 clients can wait" in each.text
        assert "sysctl net.core.somaxconn=" in each.advice
        setting.write_text("2048\n")
        assert bad(host.look(10000)) == []


class TestTelling:
    FOUND = (
        findings.ok("a", "fine"),
        findings.warning("b", "well " * 30, "do this"),
        findings.problem("c", "bad", "do that"),
    )

    def test_as_text(self) -> None:
        lines = findings.as_text(self.FOUND).splitlines()
        assert lines[0] == "ok       a: fine"
        assert lines[-3:] == ["problem  c: bad", "         -> do that", "1 problem, 1 warning"]
        assert max(map(len, lines)) <= 96

    def test_as_json(self) -> None:
        told = json.loads(findings.as_json(self.FOUND))
        assert told["ok"] is False
        assert told["findings"][0] == {"level": "ok", "about": "a", "text": "fine", "advice": ""}


class TestCommand:
    def test_the_host_alone(self) -> None:
        done = flexmigrate("doctor")
        assert done.returncode == 0
        assert done.stdout.endswith(b"no problems, no warnings\n"), done

    def test_a_server_that_is_running_and_one_that_could_be(self, servers: Servers) -> None:
        words = ("--addr", "127.0.0.1", "--file", str(servers.image), "--sock")
        server = servers.serve()
        _, port = server.listening()
        sock = str(servers.source_sock)
        sick = flexmigrate("doctor", "--json", "serve", "--port", str(port), *words, sock)
        assert sick.returncode == 1
        problems = [
            each["text"] for each in json.loads(sick.stdout)["findings"] if each["level"] != "ok"
        ]
        assert [f"locked by process {server.pid}" in text for text in problems].count(True) == 1
        assert len(problems) == 3
        server.end()
        well = flexmigrate("doctor", "serve", "--port", str(port), *words, sock)
        assert (well.returncode, well.stderr) == (0, b"")
        assert b"a dead server's socket, which will be replaced" in b" ".join(well.stdout.split())

    def test_a_configuration_file(self, servers: Servers, tmp_path: Path) -> None:
        config = tmp_path / "vm7.toml"
        config.write_text(f'addr = "127.0.0.1"\nport = 0\nfile = "{servers.copy}"\n')
        for command in ("serve", "listen"):
            assert flexmigrate("doctor", command, "--config", str(config)).returncode == 0
        config.write_text("port = true\n")
        wrong = flexmigrate("doctor", "serve", "--config", str(config))
        assert wrong.returncode == 2
        assert b"line 1: port: True is not" in wrong.stderr

    def test_what_it_can_not_look_at(self) -> None:
        wrong = flexmigrate("doctor", "mirror")
        assert wrong.returncode == 2
        assert b"neither serve nor listen" in wrong.stderr


def test_a_server_is_looked_at_wholly(image: str, pki: PKI, port: int, tmp_path: Path) -> None:
    from flexmigrate.cli.doctor.run import look

    places_ = (Address.tcp("127.0.0.1", 0), "tcp:0")
    tls = TLSConfig("require", str(pki.ours))
    rebind = Address.tcp("127.0.0.1", port)
    listen = ListenConfig(places_, image, sock=f"{tmp_path}/s", rebind=rebind, tls=tls)
    about = " ".join(each.about for each in look(listen))
    later = f"127.0.0.1:{port}, later"
    for each in (image, "127.0.0.1:0", "tcp:0", later, f"{tmp_path}/s", "key.pem"):
        assert each in about
    assert "later" not in " ".join(each.about for each in look(None))
