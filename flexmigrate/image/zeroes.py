"""A search for zeroes in a buffer, at the speed of ``memcmp``.

This decides only what the bytes are. Whether zeroes need writing depends on what is in the image
(``holes.py``).
"""

from __future__ import annotations

from flexmigrate.image.exact import Readable

# The unit in which zeroes are looked for: the block of nearly every filesystem, and so the smallest
# hole that is worth keeping.
BLOCK = 4096

# A longer buffer of zeroes is found block by block: slower, with the same answer. The kernel lends
# one page for all of this until somebody writes to it, and nobody can.
ZEROES = bytes(1024 * 1024)


def zero_runs(view: Readable, offset: int) -> list[tuple[int, int]]:
    """Return (start, end) of the runs of zeroes in *view*, ascending, relative to its first byte.

    A run is either the whole view, of any length, or made of whole blocks of the image, where
    *view* stands at *offset*. Zeroes that are neither are not found: they are written like any
    data.
    """
    if ZEROES.startswith(view):
        return [(0, len(view))]
    if len(view) <= BLOCK:
        return []
    return _block_runs(memoryview(view), -offset % BLOCK)


def _block_runs(view: memoryview, lead: int) -> list[tuple[int, int]]:
    # The first byte of each block, in one slice: a block of data betrays itself there nearly
    # always. A last block that the view cuts short is looked at like the others, and then not
    # taken.
    samples = view[lead::BLOCK].tobytes()
    runs: list[tuple[int, int]] = []
    index = samples.find(0)
    while index >= 0:
        start = lead + index * BLOCK
        end = start + BLOCK
        if end <= len(view) and ZEROES.startswith(view[start:end]):
            if runs and runs[-1][1] == start:
                start = runs.pop()[0]
            runs.append((start, end))
        index = samples.find(0, index + 1)
    return runs
