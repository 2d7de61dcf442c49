from __future__ import annotations

import dataclasses
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.net.address import (
    MAX_SOCKET_PATH,
    Address,
    BadAddress,
    parse_address,
    parse_host,
    parse_port,
    parse_shown,
)

AnyAddress = IPv4Address | IPv6Address


def with_link(host: AnyAddress) -> str:
    """Return it with the link that a link-local one of IPv6 needs."""
    needs_link = host.version == 6 and host.is_link_local and "%" not in str(host)
    return f"{host}%eth0" if needs_link else str(host)


class AddressTests(SynchronousTestCase):
    def test_it_is_written_as_people_write_it(self) -> None:
        self.assertEqual(str(Address.tcp("10.0.0.1", 10809)), "10.0.0.1:10809")
        self.assertEqual(str(Address.tcp("2001:db8::1", 1)), "[2001:db8::1]:1")
        self.assertEqual(str(Address.unix("/run/disk.sock")), "/run/disk.sock")

    def test_it_is_either_tcp_or_unix(self) -> None:
        self.assertFalse(Address.tcp("10.0.0.1", 1).is_unix)
        self.assertTrue(Address.unix("/run/disk.sock").is_unix)
        with self.assertRaises(BadAddress):
            Address()
        with self.assertRaises(BadAddress):
            Address(host="10.0.0.1", port=1, path="/run/disk.sock")

    def test_it_cannot_be_changed(self) -> None:
        with self.assertRaises(dataclasses.FrozenInstanceError):
            Address.tcp("10.0.0.1", 1).port = 2  # type: ignore[misc]  # that is the test


class ParseAddressTests(SynchronousTestCase):
    def test_tcp(self) -> None:
        self.assertEqual(parse_address("10.0.0.1", "10809"), Address.tcp("10.0.0.1", 10809))
        self.assertEqual(parse_address("::1", 0), Address.tcp("::1", 0))

    def test_one_spelling_of_each_host(self) -> None:
        self.assertEqual(parse_address("2001:DB8:0::1", "1"), parse_address("2001:db8::1", "1"))

    def test_the_link_of_a_link_local_host_is_kept(self) -> None:
        self.assertEqual(parse_address("fe80::1%eth0", "1").host, "fe80::1%eth0")
        for zone in ("a b", "sixteen-letters-", "a:b"):
            with self.assertRaisesRegex(BadAddress, "not the name of a link|neither"):
                parse_address(f"fe80::1%{zone}", "1")

    def test_the_link_of_a_link_local_host_is_needed(self) -> None:
        for host in ("fe80::1", "febf::2"):
            shown = rf"its link is missing: {host}%eth0, for example \(in a URI: .*\)$"
            with self.assertRaisesRegex(BadAddress, shown):
                parse_address(host, "1")
        self.assertEqual(parse_address("fec0::1", "1").host, "fec0::1")

    def test_a_unix_socket_has_no_port(self) -> None:
        for none in (None, 0, "0"):
            self.assertEqual(parse_address("/run/s", none), Address.unix("/run/s"))
        with self.assertRaisesRegex(BadAddress, "no port, but the port is 1"):
            parse_address("/run/s", "1")

    def test_tcp_needs_a_port(self) -> None:
        with self.assertRaisesRegex(BadAddress, r"10\.0\.0\.1 needs a port"):
            parse_address("10.0.0.1")

    def test_the_kernel_chooses_the_port_to_listen_on_but_not_one_to_connect_to(self) -> None:
        self.assertEqual(parse_address("::1", "0").port, 0)
        with self.assertRaisesRegex(BadAddress, r"'0' is not a port \(1 to 65535\)"):
            parse_address("::1", "0", lowest_port=1)

    def test_what_is_no_port_is_quoted(self) -> None:
        for text in ("", "x", "-1", "65536", "1_0", " 1", "1.0", "٣"):
            with self.subTest(text=text), self.assertRaises(BadAddress) as caught:
                parse_port(text)
            self.assertIn(repr(text), str(caught.exception))

    def test_what_is_no_host_is_quoted(self) -> None:
        for text in ("", "localhost", "10.0.0.256", "10.0.0.0/8", "[::1]", "relative/path"):
            with self.subTest(text=text), self.assertRaises(BadAddress) as caught:
                parse_address(text, "1")
            self.assertIn(repr(text), str(caught.exception))

    def test_a_path_that_no_socket_can_have_is_refused_before_the_kernel_does(self) -> None:
        longest = "/" + "x" * (MAX_SOCKET_PATH - 1)
        self.assertEqual(parse_address(longest).path, longest)
        for path in (longest + "x", "/" + "é" * 54, "/a\0b"):
            with self.subTest(path=path), self.assertRaises(BadAddress):
                parse_address(path)

    @given(st.ip_addresses())
    def test_every_ip_address_is_a_host(self, host: AnyAddress) -> None:
        self.assertEqual(parse_host(with_link(host)), with_link(host))

    @given(st.ip_addresses(), st.integers(1, 65535))
    def test_what_is_shown_is_read_again(self, host: AnyAddress, port: int) -> None:
        address = parse_address(with_link(host), port)
        self.assertEqual(parse_shown(str(address)), address)

    def test_a_path_that_is_shown_is_read_again(self) -> None:
        self.assertEqual(parse_shown("/run/nbd:1"), parse_address("/run/nbd:1"))

    def test_what_shows_no_address_is_quoted(self) -> None:
        for text in ("", "127.0.0.1", "tcp:10809", "localhost:1", "127.0.0.1:0", "[::1]:x"):
            with self.subTest(text=text), self.assertRaises(BadAddress):
                parse_shown(text)
