from __future__ import annotations

import dataclasses
import ipaddress

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.errors import FlexmigrateError
from flexmigrate.net.acl import AccessList, BadEntry


class AccessListTests(SynchronousTestCase):
    def test_an_empty_list_lets_everybody_in(self) -> None:
        self.assertTrue(AccessList().allows("10.0.0.1"))

    def test_an_empty_list_that_denies_by_default_lets_nobody_in(self) -> None:
        self.assertFalse(AccessList(default_deny=True).allows("10.0.0.1"))

    def test_a_list_with_entries_lets_in_those_alone_whatever_the_default(self) -> None:
        for default_deny in (False, True):
            acl = AccessList(["10.0.0.1", "192.168.0.0/16", "2001:db8::/32"], default_deny)
            for host in ("10.0.0.1", "192.168.255.1", "2001:db8:1::2"):
                self.assertTrue(acl.allows(host), host)
            for host in ("10.0.0.2", "192.169.0.1", "2001:db9::1", "::1"):
                self.assertFalse(acl.allows(host), host)

    def test_a_peer_on_a_unix_socket_is_always_let_in(self) -> None:
        self.assertTrue(AccessList(default_deny=True).allows(None))
        self.assertTrue(AccessList(["10.0.0.1"]).allows(None))

    def test_an_ipv4_peer_of_an_ipv6_socket_is_an_ipv4_peer(self) -> None:
        acl = AccessList(["10.0.0.0/8"])
        self.assertTrue(acl.allows("::ffff:10.1.2.3"))
        self.assertFalse(acl.allows("::ffff:11.1.2.3"))
        self.assertFalse(AccessList(["::/0"]).allows("::ffff:10.1.2.3"))

    def test_a_mapped_entry_is_an_ipv4_entry(self) -> None:
        acl = AccessList(["::ffff:10.0.0.0/104"])
        self.assertEqual(acl, AccessList(["10.0.0.0/8"]))
        self.assertTrue(acl.allows("10.1.2.3"))
        self.assertEqual(AccessList(["::ffff:0:0/96"]), AccessList(["0.0.0.0/0"]))

    def test_the_link_of_a_link_local_peer_does_not_matter(self) -> None:
        self.assertTrue(AccessList(["fe80::/10"]).allows("fe80::1%eth0"))

    def test_bits_behind_the_prefix_are_ignored(self) -> None:
        self.assertEqual(AccessList(["10.1.2.3/8"]), AccessList(["10.0.0.0/8"]))

    def test_a_peer_whose_address_makes_no_sense_is_not_let_in(self) -> None:
        self.assertFalse(AccessList(["0.0.0.0/0", "::/0"]).allows("somewhere"))

    def test_the_first_bad_entry_is_named(self) -> None:
        for bad in ("", "localhost", "10.0.0.256", "10.0.0.0/33", "fe80::1%eth0", "10.0.0.0/8 "):
            with self.subTest(bad=bad), self.assertRaises(BadEntry) as caught:
                AccessList(["10.0.0.1", bad, "worse"])
            self.assertIn(repr(bad), str(caught.exception))

    def test_a_bad_entry_can_be_caught_as_ours_and_as_a_value_error(self) -> None:
        self.assertTrue(issubclass(BadEntry, FlexmigrateError))
        self.assertTrue(issubclass(BadEntry, ValueError))

    def test_it_cannot_be_changed(self) -> None:
        with self.assertRaises(dataclasses.FrozenInstanceError):
            AccessList().default_deny = True  # type: ignore[misc]  # that is the test

    @given(st.ip_addresses(v=4), st.integers(0, 32), st.ip_addresses(v=4))
    def test_a_network_has_the_hosts_with_its_prefix(
        self, base: ipaddress.IPv4Address, prefix: int, host: ipaddress.IPv4Address
    ) -> None:
        shift = 32 - prefix
        acl = AccessList([f"{base}/{prefix}"])
        self.assertEqual(acl.allows(str(host)), int(base) >> shift == int(host) >> shift)
