"""Fuzzing with seeds: streams made wrong, what a server may make of them, and runs to repeat.

The law of this file: everything follows from the seed, so that a seed that failed fails again. How
a stream of requests has to be taken is said here a second time, from the specification and without
our own codec, or else both could be wrong together.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import re
import struct
import time
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.logger import Logger

from support.failures import overheard

# What every frame after the greeting begins with: options and their replies, requests, replies.
_FRAME = re.compile(
    b"(?s)(?=IHAVEOPT|\x00\x03\xe8\x89\x04\x55\x65\xa9|\x25\x60\x95\x13|\x21\xe4\x1c\x71"
    b"|\x67\x44\x66\x98|\x66\x8e\x33\xef|\x6e\x8a\x27\x8c)"
)

# The longest head of a frame, with what may stand at the beginning of its payload.
_HEAD = 48

_EXTREMES = (0, 1, 511, 513, 4095, 4097, 2**15, 2**16 - 1, 2**25, 2**25 + 1, 2**31, 2**32 - 1)
_LONG_EXTREMES = (*_EXTREMES, 2**32, 2**63 - 1, 2**63, 2**64 - 4096, 2**64 - 1)


# Streams made wrong


def frames_of(wire: bytes) -> list[bytes]:
    """Divide a stream where frames seem to begin."""
    return [piece for piece in _FRAME.split(wire) if piece]


def mutated(rng: random.Random, frames: Sequence[bytes]) -> list[bytes]:
    """Return the frames with up to four things wrong, or none."""
    made = list(frames)
    for _ in range(rng.randrange(5)):
        if made:
            rng.choice(_MUTATIONS)(rng, made)
            made = [frame for frame in made if frame]
    return made


def _flip(rng: random.Random, frames: list[bytes]) -> None:
    at = rng.randrange(len(frames))
    frame = bytearray(frames[at])
    place = rng.randrange(min(len(frame), rng.choice((_HEAD, len(frame)))))
    frame[place] ^= 1 << rng.randrange(8)
    frames[at] = bytes(frame)


def _set_field(rng: random.Random, frames: list[bytes]) -> None:
    at = rng.randrange(len(frames))
    size = rng.choice((2, 4, 8))
    values = _LONG_EXTREMES if size == 8 else _EXTREMES
    value = rng.choice(values) % (1 << 8 * size)
    place = rng.randrange(0, _HEAD, 2)
    if place + size <= len(frames[at]):
        frames[at] = _put(frames[at], place, value.to_bytes(size, "big"))


def _put(frame: bytes, place: int, piece: bytes) -> bytes:
    return frame[:place] + piece + frame[place + len(piece) :]


def _cut(rng: random.Random, frames: list[bytes]) -> None:
    at = rng.randrange(len(frames))
    frames[at] = frames[at][: rng.randrange(len(frames[at]) + 1)]


def _end(rng: random.Random, frames: list[bytes]) -> None:
    at = rng.randrange(len(frames))
    frames[at:] = [frames[at][: rng.randrange(len(frames[at]) + 1)]]


def _repeat(rng: random.Random, frames: list[bytes]) -> None:
    at = rng.randrange(len(frames))
    frames[at:at] = [frames[at]] * rng.choice((1, 1, 2, 50))


def _drop(rng: random.Random, frames: list[bytes]) -> None:
    del frames[rng.randrange(len(frames))]


def _reorder(rng: random.Random, frames: list[bytes]) -> None:
    one, other = rng.randrange(len(frames)), rng.randrange(len(frames))
    frames[one], frames[other] = frames[other], frames[one]


def _lengthen(rng: random.Random, frames: list[bytes]) -> None:
    at = rng.randrange(len(frames))
    frames[at] += rng.randbytes(rng.choice((1, 3, 4, 100, 5000)))


def _insert(rng: random.Random, frames: list[bytes]) -> None:
    frames.insert(
        rng.randrange(len(frames) + 1), rng.randbytes(rng.choice((1, 4, 28, 1000, 70000)))
    )


_MUTATIONS: tuple[Callable[[random.Random, list[bytes]], None], ...] = (
    *(_flip, _flip, _set_field, _set_field, _cut, _end),
    *(_repeat, _drop, _reorder, _lengthen, _insert),
)


def pieces(rng: random.Random, wire: bytes, most: int = 65536) -> list[bytes]:
    """Cut a stream as a network might."""
    size = rng.choice((most, most, 1000, 29)) if len(wire) < 20_000 else most
    cut = []
    while wire:
        length = rng.randrange(1, size + 1) if rng.random() < 0.5 else size
        cut.append(wire[:length])
        wire = wire[length:]
    return cut


# What a server has to make of a stream of requests

_WRITE, _DISC, _TRIM, _ZERO = 1, 2, 4, 6
_FUA, _NO_HOLE, _FAST_ZERO, _PAYLOAD_LEN = 1, 2, 16, 32
_LARGEST_PAYLOAD = 128 << 20  # docs/protocol.rst: the most that is thrown away


@dataclass
class Verdict:
    """The expected reaction to a stream of requests.

    :ivar changes: (offset, length) of all that may be changed.
    :ivar cookies: of the requests that are whole, and so have to be answered.
    :ivar left: whether the client took leave.
    :ivar broken: whether it said what can't be understood.
    :ivar missing: bytes of the last payload that did not come; None where a header is cut.
    """

    changes: list[tuple[int, int]] = field(default_factory=list)
    cookies: list[int] = field(default_factory=list)
    left: bool = False
    broken: bool = False
    missing: int | None = 0


def judge(wire: bytes, extended: bool, size: int) -> Verdict:
    """Judge a stream of requests to a writable export of *size* bytes."""
    verdict = Verdict()
    layout = struct.Struct(">IHHQQQ" if extended else ">IHHQQI")
    at = 0
    while at < len(wire):
        if at + layout.size > len(wire):
            verdict.missing = None
            break
        magic, flags, command, cookie, offset, length = layout.unpack_from(wire, at)
        at += layout.size
        carries = flags & _PAYLOAD_LEN if extended else command == _WRITE
        payload = length if carries else 0
        if magic != (0x21E41C71 if extended else 0x25609513):
            verdict.broken = True
        elif command == _DISC:
            verdict.left = not (flags or offset or length)
            verdict.broken = not verdict.left
        elif payload > _LARGEST_PAYLOAD:
            verdict.broken = True
        if verdict.broken or verdict.left:
            break
        allowed = {_WRITE: _FUA, _TRIM: _FUA, _ZERO: _FUA | _NO_HOLE | _FAST_ZERO}.get(command, -1)
        allowed |= _PAYLOAD_LEN if extended and command == _WRITE else 0
        if allowed >= 0 and not flags & ~allowed and offset + length <= size:
            verdict.changes.append((offset, length))
        at += payload
        if at <= len(wire):
            verdict.cookies.append(cookie)
        else:
            verdict.missing = at - len(wire)
    return verdict


def unchanged_outside(before: bytes, after: bytes, ranges: Iterable[tuple[int, int]]) -> bool:
    """Tell whether an image is as before wherever it was not to be changed."""
    expected = bytearray(before)
    for offset, length in ranges:
        expected[offset : offset + length] = after[offset : offset + length]
    return bytes(expected) == after


# Memory


def bytes_held(roots: Iterable[Any], shared: Iterable[Any]) -> int:
    """Return how many bytes of data can be reached from *roots* without passing *shared*."""
    seen = {id(each) for each in shared}
    waiting = list(roots)
    held = 0
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, (type, types.ModuleType, Logger)):
            continue
        seen.add(id(one))
        if isinstance(one, (bytes, bytearray)):
            held += len(one)
        elif isinstance(one, memoryview):
            with contextlib.suppress(ValueError):  # it was released
                waiting.append(one.obj)
        elif isinstance(one, types.FunctionType):
            waiting += one.__closure__ or ()  # and not the module that it stands in
        else:
            waiting += gc.get_referents(one)
    return held


# Runs


def campaign(case: Callable[[random.Random], None], seconds: float, first: int | None) -> int:
    """Try case after case, each with the next seed; return how many there were.

    :param seconds: how long.
    :param first: the one case that is to be repeated; None for as many as there is time for.
    """
    deadline = time.monotonic() + seconds
    seed = _first_seed() if first is None else first
    tried = 0
    while not tried or (first is None and time.monotonic() < deadline):
        try:
            _attempt(case, seed)
        except BaseException:
            print(f"\nthe fuzz has found something; this repeats it: FUZZ_SEED={seed}")
            raise
        seed += 1
        tried += 1
    return tried


def _first_seed() -> int:
    """Return where to begin: the same each time, so that what has passed passes again; or anywhere,
    where FUZZ_ANYWHERE is set, to find what nobody has seen.
    """
    return random.SystemRandom().randrange(1 << 48) if os.environ.get("FUZZ_ANYWHERE") else 0


def _attempt(case: Callable[[random.Random], None], seed: int) -> None:
    with overheard():
        case(random.Random(seed))


def seconds_to_fuzz() -> float:
    """Return for how long to go on."""
    return float(os.environ.get("FUZZ_SECONDS", "10"))


def seed_to_repeat() -> int | None:
    """Return the seed of the one case that is wanted, or None."""
    seed = os.environ.get("FUZZ_SEED")
    return None if seed is None else int(seed)
