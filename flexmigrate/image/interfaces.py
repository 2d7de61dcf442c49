"""The interface of a block device: a class that provides it is served like a file.

An open file (:class:`flexmigrate.image.file.Image`) provides it, too, but is served by a shorter
way.
"""

from __future__ import annotations

from zope.interface import Attribute, Interface

from flexmigrate.image.exact import Readable


class IBlockDevice(Interface):
    """Bytes that can be read and, unless they are read-only, changed.

    All offsets and lengths are in bytes. Ranges that a method is given lie within the device and
    aren't empty. Every method is called in the reactor's thread and returns its result, a Deferred
    or a coroutine of it, and must not block. What fails is an ``OSError``: ``EIO``, ``ENOSPC``,
    ``EROFS`` … are told to clients as such; anything else is logged as a bug and told as ``EIO``.

    Many calls may be under way at the same time, and those whose ranges overlap may be carried out
    in any order. But once a change has ended, every read that begins later sees it.

    ``flexmigrate.testing.BlockDeviceTests`` checks whether a class keeps to this.
    """

    size = Attribute("int: bytes, constant; any number of them.")
    read_only = Attribute("bool: write, zero and trim are not called.")

    def read(offset: int, length: int) -> object:  # noqa: N805
        """Return *length* bytes from *offset*, as a bytes-like object that doesn't change any more.

        The length is at most 32 MiB.
        """

    def write(data: Readable, offset: int) -> object:  # noqa: N805
        """Write all of *data*, at most 32 MiB, at *offset*.

        *data* is bytes-like, and only valid until the write has ended. If it fails, any part may
        have been written.
        """

    def zero(offset: int, length: int, *, may_punch: bool, fast_only: bool = False) -> object:  # noqa: N805
        """Make a range read as zeroes, to the byte.

        :param may_punch: its storage may be given back; else it has to stay, or be allocated.
        :param fast_only: fail with ``ENOTSUP``, and change nothing, where this isn't quicker than
            writing zeroes.
        """

    def trim(offset: int, length: int) -> object:  # noqa: N805
        """A range isn't needed any more, and may read as anything from then on. Advice."""

    def flush() -> object:
        """Make durable what had ended before this was called: one call at a time."""

    def extents(offset: int, length: int) -> object:  # noqa: N805
        """Return an iterable of :class:`~flexmigrate.image.extents.Extent` that tells data from
        holes, which read as zeroes: ascending, without gaps, the first from *offset* on.

        It may end early, but not before its first extent: then it is asked again from there. Where
        nothing is known, all is data: ``[Extent(offset, length, True)]``.
        """

    def close() -> object:
        """Let go of everything: called once, after all other calls have ended."""


class IReadyBlockDevice(IBlockDevice):
    """A device that can often answer at once, which spares most of what a request costs.

    Optional. None of this may wait, or return a Deferred.
    """

    def try_read_into(view: memoryview, offset: int) -> bool:  # noqa: N805
        """Fill *view* from *offset* and return True; or return False: ``read`` is asked then."""

    def may_block_write(offset: int, length: int) -> bool:  # noqa: N805
        """Tell whether ``write_now`` can't be asked for this range now; then ``write`` is."""

    def write_now(data: Readable, offset: int) -> None:  # noqa: N805
        """Write all of *data* at *offset*, as ``write`` does, but by the time this returns."""
