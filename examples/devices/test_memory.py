"""The conformance suite, put to the disk in memory: ``python -m twisted.trial test_memory``."""

from memory import MemoryDevice
from twisted.trial.unittest import TestCase

from flexmigrate.testing import BlockDeviceTests


class MemoryTests(BlockDeviceTests, TestCase):
    def make_device(self, content: bytes) -> MemoryDevice:
        return MemoryDevice(content)
