from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.errors import LocalProtocolError
from flexmigrate.wire.agreement import DEFAULT_BLOCK_SIZES, ExportInfo, block_size_fault
from flexmigrate.wire.constants import TransmissionFlag

NONE = TransmissionFlag(0)


class BlockSizes(SynchronousTestCase):
    def test_what_the_specification_allows_is_allowed(self) -> None:
        for sizes in (
            DEFAULT_BLOCK_SIZES,
            (1, 512, 512),
            (65536, 65536, 0xFFFFFFFF),
            (512, 1 << 20, (1 << 20) + 1),
        ):
            self.assertIsNone(block_size_fault(sizes), sizes)

    def test_a_preferred_block_below_512_is_let_pass(self) -> None:
        self.assertIsNone(block_size_fault((1, 1, 1 << 20)))

    def test_every_size_can_be_wrong(self) -> None:
        for sizes, fault in {
            (0, 4096, 1 << 20): "minimum",
            (3, 4096, 1 << 20): "minimum",
            (131072, 131072, 1 << 20): "minimum",
            (512, 0, 1 << 20): "preferred",
            (512, 256, 1 << 20): "preferred",
            (512, 4095, 1 << 20): "preferred",
            (512, 4096, 0): "maximum",
            (512, 4096, 4095): "maximum",
            (512, 4096, 1 << 32): "maximum",
        }.items():
            self.assertIn(fault, str(block_size_fault(sizes)))


class Exports(SynchronousTestCase):
    def test_an_export_of_nothing_and_one_of_almost_2_to_the_63_can_be_told(self) -> None:
        for size in (0, 2**63 - 1):
            self.assertEqual(ExportInfo("", size, NONE).size, size)

    def test_what_could_not_be_told_to_a_client_is_refused_at_once(self) -> None:
        for name, size, description, blocks, contexts in (
            ("x" * 4097, 0, "", DEFAULT_BLOCK_SIZES, ()),
            ("a\0", 0, "", DEFAULT_BLOCK_SIZES, ()),
            ("", -1, "", DEFAULT_BLOCK_SIZES, ()),
            ("", 2**63, "", DEFAULT_BLOCK_SIZES, ()),
            ("", 0, "x" * 4097, DEFAULT_BLOCK_SIZES, ()),
            ("", 0, "", (3, 4096, 4096), ()),
            ("", 0, "", DEFAULT_BLOCK_SIZES, ("x:" + "y" * 4095,)),
        ):
            with self.assertRaises(LocalProtocolError):
                ExportInfo(name, size, NONE, description, blocks, contexts)
