"""Everybody with everybody: fills in the tables of docs/compatibility.rst."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.certificates import PKI
from support.images import MIB, assert_same, blank_image, random_image
from support.matrix import Matrix
from support.nbd_peers import PEERS, Peer, peers_with_tls
from support.processes import TESTS, Children, flexmigrate, run, script
from support.programs import Programs

DOCUMENT = TESTS.parent / "docs" / "compatibility.rst"
SIZE = 2 * MIB
NAME = "disk"  # of an export that is alone
SECOND = "the second"  # the one that is asked for where there are several


@dataclass(frozen=True)
class Offer:
    """An export of ours, and the way to it.

    :ivar image: what is behind it.
    :ivar host: address, or the path of a UNIX socket; then `port` is 0.
    :ivar export: its name.
    :ivar certificates: the folder that a client of it needs, or None.
    """

    image: Path
    host: str
    port: int
    export: str = ""
    certificates: Path | None = None

    def uri(self, *, with_certificates: bool = True) -> str:
        """Return the URI; libnbd's programs find the certificates in it."""
        scheme = "nbds" if self.certificates else "nbd"
        name = self.export.replace(" ", "%20")
        folder = f"tls-certificates={self.certificates}"
        more = [folder] if self.certificates and with_certificates else []
        if not self.port:
            more.insert(0, f"socket={self.host}")
            return f"{scheme}+unix:///{name}?{'&'.join(more)}"
        return f"{scheme}://{self.host}:{self.port}/{name}{'?' if more else ''}{'&'.join(more)}"

    @property
    def credentials(self) -> list[str]:
        """What QEMU's programs are told of the certificates."""
        if self.certificates is None:
            return []
        return ["--object", f"tls-creds-x509,id=tls,dir={self.certificates},endpoint=client"]

    @property
    def options(self) -> str:
        """The export as QEMU's ``--image-opts`` have it."""
        where = f"host={self.host},port={self.port}" if self.port else f"path={self.host}"
        tls = ",tls-creds=tls" if self.certificates else ""
        return f"driver=nbd,{where},export={self.export}{tls}"


# Clients: each reads or writes, and raises an error where that doesn't work.


def qemu_img(programs: Programs, offer: Offer, folder: Path) -> None:
    copy = folder / "copy"
    words = (*offer.credentials, "--image-opts", offer.options, "-O", "raw", str(copy))
    programs.run("qemu-img", "convert", *words)
    assert_same(offer.image, copy)


def qemu_io(programs: Programs, offer: Offer, folder: Path) -> None:
    commands = ("write -P 0x41 4096 8192", "write -z 64k 64k", "flush", "read -P 0x41 4096 8192")
    words = [word for each in commands for word in ("-c", each)]
    said = programs.run("qemu-io", *offer.credentials, *words, "--image-opts", offer.options)
    assert "failed" not in said
    assert offer.image.read_bytes()[4096:12288] == b"\x41" * 8192


def qemu_nbd_list(programs: Programs, offer: Offer, folder: Path) -> None:
    where = (f"--bind={offer.host}", f"--port={offer.port}")
    tls = ("--tls-creds=tls",) if offer.certificates else ()
    if not offer.port:
        where = (f"--socket={offer.host}", "--list")
    said = programs.run("qemu-nbd", "--list", *where, *offer.credentials, *tls)
    assert f"export: '{offer.export}'\n" in said
    assert f"size:  {SIZE}" in said


def nbdcopy(programs: Programs, offer: Offer, folder: Path) -> None:
    copy = folder / "copy"
    programs.run("nbdcopy", offer.uri(), str(copy))
    assert_same(offer.image, copy)
    other = random_image(folder / "other", SIZE, seed=9)
    programs.run("nbdcopy", "--flush", str(other), offer.uri())
    assert_same(other, offer.image)


def nbdinfo(programs: Programs, offer: Offer, folder: Path) -> None:
    (export,) = json.loads(programs.run("nbdinfo", "--json", offer.uri()))["exports"]
    assert export["export-size"] == SIZE


def nbdinfo_map(programs: Programs, offer: Offer, folder: Path) -> None:
    extents = json.loads(programs.run("nbdinfo", "--json", "--map", offer.uri()))
    assert sum(each["length"] for each in extents) == SIZE


def nbdsh(programs: Programs, offer: Offer, folder: Path) -> None:
    commands = (
        "h.set_uri_allow_local_file(True)",
        f"h.connect_uri('{offer.uri()}')",
        "h.pwrite(b'nbdsh' * 100, 1000)",
        "h.flush()",
        "assert h.pread(500, 1000) == b'nbdsh' * 100",
    )
    # It takes the first python3 that it finds, and only the system's knows it.
    shell = ("PATH=/usr/bin:/bin", programs.path("nbdsh"))
    programs.run("env", *shell, *(word for each in commands for word in ("-c", each)))
    assert offer.image.read_bytes()[1000:1500] == b"nbdsh" * 100


def nbd_client_list(programs: Programs, offer: Offer, folder: Path) -> None:
    tls = ("-x", "-A", str(offer.certificates / "ca-cert.pem")) if offer.certificates else ()
    where = (offer.host, str(offer.port)) if offer.port else ("-unix", offer.host)
    said = programs.run("nbd-client", "-l", *where, *tls, timeout=10)
    assert offer.export in said.splitlines()


def fio(programs: Programs, offer: Offer, folder: Path) -> None:
    if "nbd" not in programs.run("fio", "--enghelp").split():
        pytest.skip("this fio has no nbd engine")
    job = ("--name=job", "--ioengine=nbd", f"--uri={offer.uri()}", "--rw=randrw", "--bs=4k")
    limits = (f"--size={SIZE}", "--io_size=256k", f"--aux-path={folder}")
    verify = ("--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0")
    programs.run("fio", *job, *limits, *verify, "--output-format=json")


def our_client(programs: Programs, offer: Offer, folder: Path) -> None:
    if offer.export != SECOND and not offer.certificates:
        where = ["--addr", offer.host, *(["--port", str(offer.port)] if offer.port else [])]
    else:
        where = [offer.uri(with_certificates=False)]
    tls = ("--tls-certificates", str(offer.certificates)) if offer.certificates else ()
    words = (*where, "--from", "8192", "--size", "4", *tls)
    written = flexmigrate("write", *words, stdin=b"ours")
    assert written.returncode == 0, written
    assert flexmigrate("read", *words).stdout == b"ours"
    assert offer.image.read_bytes()[8192:8196] == b"ours"


CLIENTS: dict[str, Callable[[Programs, Offer, Path], None]] = {
    "qemu-img": qemu_img,
    "qemu-io": qemu_io,
    "qemu-nbd --list": qemu_nbd_list,
    "nbdcopy": nbdcopy,
    "nbdinfo": nbdinfo,
    "nbdinfo --map": nbdinfo_map,
    "nbdsh": nbdsh,
    "nbd-client -l": nbd_client_list,
    "fio": fio,
    "our client": our_client,
}

_NO_LIST = "The oldstyle handshake has no list of exports."
_NO_EXTENTS = "The oldstyle handshake has no way to ask for extents."
_FIO = "fio's engine doesn't accept a folder of certificates in a URI."

WITH_US = Matrix(
    "clients",
    list(CLIENTS),
    ["TCP", "UNIX", "TLS", "oldstyle", "several exports"],
    {
        ("nbdinfo --map", "oldstyle"): _NO_EXTENTS,
        ("nbd-client -l", "oldstyle"): _NO_LIST,
        ("fio", "TLS"): _FIO,
    },
)
WITH_OTHERS = Matrix(
    "servers",
    ["our client", "our mirror"],
    [f"{name}, {tls}" for name in ("nbdkit", "qemu-nbd", "nbd-server") for tls in ("plain", "TLS")],
    {},
)


@pytest.fixture(scope="module")
def offers(tmp_path_factory: pytest.TempPathFactory, pki: PKI) -> Iterator[dict[str, Offer]]:
    """Serve in all the ways, for all the tests."""
    folder = tmp_path_factory.mktemp("offers")
    image, other = random_image(folder / "image", SIZE), random_image(folder / "other", SIZE // 2)
    tcp = ("--addr", "127.0.0.1", "--port", "0")
    tls = ("--tls", "require", "--tls-certificates", str(pki.ours))
    ways = {
        "TCP": tcp,
        "UNIX": ("--addr", str(folder / "nbd")),
        "TLS": (*tcp, *tls),
        "oldstyle": (*tcp, "--oldstyle"),
        "several exports": (*tcp, f"--export=first={other}"),
    }
    found = {}
    with Children() as children:
        for name, words in ways.items():
            own = folder / name
            own.write_bytes(image.read_bytes())
            export = {"several exports": SECOND, "oldstyle": ""}.get(name, NAME)
            file = (f"--export={export}={own}",) if export else ("--file", str(own))
            server = children.flexmigrate("serve", *words, *file)
            host, port = server.listening()
            found[name] = Offer(
                own,
                host,
                port,
                export=export,
                certificates=pki.anonymous if name == "TLS" else None,
            )
        yield found
    assert_same(other, random_image(folder / "as it was", SIZE // 2))


@pytest.mark.parametrize(("row", "column"), WITH_US.cells)
def test_a_client_with_us(
    row: str, column: str, offers: dict[str, Offer], programs: Programs, tmp_path: Path
) -> None:
    if (row, column) in WITH_US.impossible:
        with pytest.raises(AssertionError):
            CLIENTS[row](programs, offers[column], tmp_path)
        WITH_US.fill_in(row, column, works=False)
    else:
        CLIENTS[row](programs, offers[column], tmp_path)
        WITH_US.fill_in(row, column, works=True)


@contextlib.contextmanager
def others(column: str, pki: PKI, image: Path) -> Iterator[Offer]:
    """Have another server serve *image*, for one connection at least."""
    name, tls = column.split(", ")
    plain: dict[str, Peer] = {**PEERS, "nbdkit": PEERS["nbdkit-file"]}
    peer = (peers_with_tls(pki.ours) if tls == "TLS" else plain)[name]
    if peer.missing:
        pytest.skip(f"{peer.program} is not installed")
    with socket.create_server(("127.0.0.1", 0)) as listening, peer.serve(listening, image):
        certificates = pki.ours if tls == "TLS" else None
        host, port = listening.getsockname()
        yield Offer(image, host, port, peer.export, certificates)


def talk_to(column: str, pki: PKI, folder: Path) -> None:
    """Write and read back; nbd-server serves one connection, so each has its own server."""
    image = blank_image(folder / "image", SIZE)
    for command, stdin in (("write", b"ours"), ("read", b"")):
        with others(column, pki, image) as offer:
            tls = ("--tls-certificates", str(offer.certificates)) if offer.certificates else ()
            words = (offer.uri(with_certificates=False), "--from", "8192", "--size", "4", *tls)
            done = flexmigrate(command, *words, stdin=stdin)
        assert (done.returncode, done.stdout) == (0, b"ours" if command == "read" else b""), done
    assert image.read_bytes()[8192:8196] == b"ours"


def migrate_to(column: str, pki: PKI, folder: Path) -> None:
    """Send an image there."""
    image = random_image(folder / "source", SIZE)
    copy, sock = blank_image(folder / "image", SIZE), folder / "sock"
    with Children() as children, others(column, pki, copy) as offer:
        place = ("--addr", "127.0.0.1", "--port", "0", "--sock", str(sock))
        source = children.flexmigrate("serve", *place, "--file", str(image))
        source.listening()
        there = ("--addr", offer.host, "--port", str(offer.port), "--sock", str(sock))
        name = ("--remote-export", offer.export, "--handover", "plain")
        tls = ("--tls", "require", "--tls-certificates", str(offer.certificates))
        asked = run(
            *(script("flexmigrate"), "mirror", *there, *name), *(tls if offer.certificates else ())
        )
        assert asked.returncode == 0, asked
        source.expect_exit(0)
    assert_same(image, copy)


@pytest.mark.parametrize(("row", "column"), WITH_OTHERS.cells)
def test_us_with_another_server(row: str, column: str, pki: PKI, tmp_path: Path) -> None:
    if row == "our client":
        talk_to(column, pki, tmp_path)
    else:
        migrate_to(column, pki, tmp_path)
    WITH_OTHERS.fill_in(row, column, works=True)


@pytest.mark.parametrize("matrix", [WITH_US, WITH_OTHERS], ids=["clients", "servers"])
def test_the_documentation_says_what_was_seen(matrix: Matrix) -> None:
    """It comes last."""
    if not matrix.is_complete:
        pytest.skip("not every cell was tried")
    matrix.settle(DOCUMENT)
