"""An image does what an array of bytes does, whatever is asked of it, and tells its holes truly."""

import random
import tempfile
from pathlib import Path
from typing import TypeAlias

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.image.file import Image
from support.images import BLOCK, blank_image, random_image

SIZE = 16 * BLOCK + 511

# Offsets and lengths near the edges of blocks, where mistakes are.
NEAR = st.tuples(st.integers(0, 16), st.sampled_from((0, 0, 0, 1, 511, 512, 4095))).map(
    lambda pair: min(pair[0] * BLOCK + pair[1], SIZE)
)
CONTENTS = st.lists(st.sampled_from(("zeroes", "data", "late")), min_size=1, max_size=4)
Step: TypeAlias = tuple[str, int, int, list[str]]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(("read", "write", "punch", "allocate", "trim", "extents")),
        NEAR,
        NEAR,
        CONTENTS,
    ),
    max_size=25,
)


def content(kinds: list[str], length: int) -> bytes:
    """*length* bytes whose blocks are in turn of these kinds."""
    blocks = {
        "zeroes": bytes(BLOCK),
        "data": random.Random(length).randbytes(BLOCK),
        "late": bytes(BLOCK - 1) + b"\x01",
    }
    return b"".join(blocks[kinds[i % len(kinds)]] for i in range(length // BLOCK + 1))[:length]


class AgainstAnArray(SynchronousTestCase):
    @settings(deadline=None, max_examples=200)  # a disk takes the time that it takes
    @given(st.sampled_from(("/var/tmp", "/dev/shm")), STEPS, st.booleans())
    def test_any_sequence_gives_what_an_array_gives(
        self, parent: str, steps: list[Step], dense: bool
    ) -> None:
        with tempfile.TemporaryDirectory(dir=parent) as folder:
            path = Path(folder, "image")
            (random_image if dense else blank_image)(path, SIZE)
            model = bytearray(path.read_bytes())
            image = Image.open(str(path))
            try:
                for name, one, other, kinds in steps:
                    self.step(image, model, name, min(one, other), abs(one - other), kinds)
                self.assertEqual(image.read(0, SIZE), model)
                self.check_extents(image, model, 0, SIZE)
            finally:
                image.close()
            self.assertEqual(path.read_bytes(), model)

    def step(
        self,
        image: Image,
        model: bytearray,
        name: str,
        offset: int,
        length: int,
        kinds: list[str],
    ) -> None:
        end = offset + length
        if name == "read":
            view = memoryview(bytearray(length))
            if not image.try_read_into(view, offset):
                image.read_into(view, offset)
            self.assertEqual(view, model[offset:end])
        elif name == "write":
            model[offset:end] = content(kinds, length)
            image.write(content(kinds, length), offset)
        elif name == "extents":
            self.check_extents(image, model, offset, length)
        else:
            model[offset:end] = bytes(length)
            if name == "trim":
                image.trim(offset, length)  # whose outcome is certain for a file
            else:
                image.zero(offset, length, may_punch=name == "punch")

    def check_extents(self, image: Image, model: bytearray, offset: int, length: int) -> None:
        position, before = offset, None
        for extent in image.extents(offset, length):
            self.assertEqual(extent.offset, position)
            self.assertNotEqual(extent.data, before)
            if not extent.data:
                self.assertEqual(model[extent.offset : extent.end], bytes(extent.length))
            position, before = extent.end, extent.data
        self.assertEqual(position, offset + length)
