"""The fuzz notices what it is for, and repeats what it noticed."""

import contextlib
import io
import random
import struct

from twisted.internet.defer import fail
from twisted.trial.unittest import SynchronousTestCase

from support.fuzzing import bytes_held, campaign, frames_of, judge, mutated, unchanged_outside


def request(command, offset, length, flags=0, cookie=5):
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length)


class FuzzingTests(SynchronousTestCase):
    def test_a_failure_tells_the_seed_that_repeats_it(self):
        def case(rng):
            assert rng.random() < 0.5

        told = io.StringIO()
        with contextlib.redirect_stdout(told), self.assertRaises(AssertionError):
            campaign(case, 20, None)
        seed = int(told.getvalue().rsplit("FUZZ_SEED=", 1)[1])
        with self.assertRaises(AssertionError):
            campaign(case, 0, seed)

    def test_what_was_only_logged_is_a_failure(self):
        with self.assertRaises(AssertionError):
            campaign(lambda rng: fail(ValueError()) and None, 0, 1)
        self.flushLoggedErrors(ValueError)

    def test_a_seed_makes_the_same_stream(self):
        frames = frames_of(request(0, 0, 512) + request(1, 0, 512) + bytes(512) + request(3, 0, 0))
        self.assertEqual(len(frames), 3)
        made = {seed: mutated(random.Random(seed), frames) for seed in range(50)}
        self.assertEqual(made, {seed: mutated(random.Random(seed), frames) for seed in made})
        self.assertGreater(len({b"".join(each) for each in made.values()}), 20)

    def test_requests_are_judged(self):
        wire = request(1, 512, 4, cookie=1) + b"abcd" + request(6, 4096, 512, 8) + request(1, 0, 10)
        verdict = judge(wire + b"123", False, 8192)
        self.assertEqual(verdict.changes, [(512, 4), (0, 10)])
        self.assertEqual((verdict.cookies, verdict.missing), ([1, 5], 7))
        self.assertTrue(judge(request(2, 0, 0), False, 8192).left)
        self.assertTrue(judge(request(2, 1, 0), False, 8192).broken)
        self.assertTrue(judge(bytes(28), False, 8192).broken)
        self.assertIsNone(judge(wire[:20], False, 8192).missing)

    def test_a_byte_outside_is_noticed(self):
        self.assertTrue(unchanged_outside(b"abcd", b"aXYd", [(1, 2)]))
        self.assertFalse(unchanged_outside(b"abcd", b"aXYd", [(1, 1)]))

    def test_what_is_held_is_found(self):
        shared = [bytes(10_000)]
        data = memoryview(bytes(1000))
        self.assertTrue(1000 <= bytes_held([{"x": lambda: (data, shared)}], [shared]) < 2000)
