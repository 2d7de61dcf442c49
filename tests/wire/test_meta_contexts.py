from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.errors import RemoteProtocolError
from flexmigrate.wire.meta_contexts import listed, parse_queries, selected
from support.negotiation import queries

OURS = ("base:allocation", "flexmigrate:dirty", "flexmigrate:cold")


class Listing(SynchronousTestCase):
    def test_without_a_query_all_are_listed(self) -> None:
        self.assertEqual(listed(OURS, []), list(OURS))

    def test_a_namespace_alone_lists_its_leaves(self) -> None:
        self.assertEqual(listed(OURS, ["base:"]), ["base:allocation"])
        self.assertEqual(listed(OURS, ["flexmigrate:"]), list(OURS[1:]))

    def test_each_is_listed_once_and_in_our_order(self) -> None:
        asked = ["flexmigrate:cold", "flexmigrate:", "base:allocation", "base:"]
        self.assertEqual(listed(OURS, asked), list(OURS))

    def test_what_is_unknown_is_ignored(self) -> None:
        for query in ("base:alloc", "base:allocation2", "qemu:", "x-y:z:", "Base:"):
            self.assertEqual(listed(OURS, [query]), [], query)


class Selecting(SynchronousTestCase):
    def test_without_a_query_none_is_selected(self) -> None:
        self.assertEqual(selected(OURS, []), ())

    def test_a_wildcard_selects_nothing(self) -> None:
        self.assertEqual(selected(OURS, ["base:", "flexmigrate:"]), ())

    def test_names_select_and_every_context_has_an_id_of_its_own(self) -> None:
        asked = ["flexmigrate:cold", "base:allocation", "base:allocation", "qemu:x"]
        chosen = selected(OURS, asked)
        self.assertEqual([name for _, name in chosen], ["base:allocation", "flexmigrate:cold"])
        self.assertEqual(len({number for number, _ in chosen}), 2)


class Queries(SynchronousTestCase):
    def test_a_query_begins_with_a_namespace_and_a_colon(self) -> None:
        self.assertEqual(parse_queries(queries(b"d", b"a:", b"a:b:c")).queries, ("a:", "a:b:c"))
        for wrong in (b"", b"base", b":", b":leaf"):
            with self.assertRaisesRegex(RemoteProtocolError, "namespace"):
                parse_queries(queries(b"d", b"base:allocation", wrong))
