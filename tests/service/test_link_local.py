"""Link-local addresses, which have their link behind them: in options, in URIs, and as shown."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.images import assert_same, blank_image, random_image
from support.operator import status
from support.privileges import Link, linked_namespaces, needs_root
from support.processes import Children, script
from support.servers import SIZE

pytestmark = needs_root

NEAR, FAR = "fe80::1%v", "fe80::2%v"


@pytest.fixture
def link() -> Iterator[Link]:
    """Two namespaces with link-local addresses that are there at once."""
    with linked_namespaces() as made:
        for end, address in (("near", NEAR), ("far", FAR)):
            words = ("ip", "address", "add", f"{address.partition('%')[0]}/64", "dev", "v", "nodad")
            subprocess.run([*made.within(end), *words], check=True)
        yield made


def run(link: Link, end: str, *words: str) -> bytes:
    """Run a command of ours at one end, and return what it prints."""
    argv = [*link.within(end), script("flexmigrate"), *words]
    return subprocess.run(argv, check=True, capture_output=True).stdout


def test_an_image_is_served_and_moved_between_them(
    children: Children, link: Link, tmp_path: Path
) -> None:
    image, copy = random_image(tmp_path / "image", SIZE), blank_image(tmp_path / "copy", SIZE)
    sock, other = tmp_path / "source.sock", tmp_path / "destination.sock"
    near, far = link.within("near"), link.within("far")
    words = ("--addr", NEAR, "--port", "10809", "--file", str(image), "--sock", str(sock))
    source = children.start(*near, script("flexmigrate"), "serve", *words, "fe80::/64")
    source.wait_for(r"listening on \[fe80::1%v\]:10809")
    expected = image.read_bytes()[:512]
    for zone in ("%25v", "%v"):
        uri = f"nbd://[fe80::1{zone}]:10809/"
        assert run(link, "far", "read", "--from", "0", "--size", "512", uri) == expected
    source.wait_for(r"client 2 \[fe80::2%v\]:")
    words = ("--addr", FAR, "--port", "10809", "--file", str(copy), "--sock", str(other))
    destination = children.start(*far, script("flexmigrate"), "listen", *words, "fe80::/64")
    destination.wait_for(r"listening on \[fe80::2%v\]:10809")
    run(
        link,
        "near",
        "mirror",
        "--addr",
        FAR,
        "--port",
        "10809",
        "--sock",
        str(sock),
        "--max-bps",
        "1M",
    )
    assert status(sock)["migration_address"].replace("%25", "%") == "[fe80::2%v]:10809"
    run(link, "near", "mirror-max-bps", "0", "--sock", str(sock))
    source.expect_exit(0)
    destination.expect_exit(0)
    assert_same(image, copy)


def test_an_interface_that_does_not_exist_is_named() -> None:
    for words in (("nbd://[fe80::1%25nosuch]/",), ("--addr", "fe80::1%nosuch", "--port", "10809")):
        argv = [script("flexmigrate"), "read", "--from", "0", "--size", "512", *words]
        ended = subprocess.run(argv, check=False, capture_output=True)
        assert (ended.returncode, ended.stderr) == (
            1,
            b"flexmigrate: no connection to the server: there is no network interface 'nosuch'\n",
        )
