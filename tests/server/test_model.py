"""Random requests from some clients, each on its own part, against a model in memory."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.wire.constants import Command, CommandFlag
from support.feeds import PlainFeed, StreamFeed
from support.serving import EXTENDED, FEEDS, SIMPLE, STRUCTURED, STYLES, Served

SIZE = 1 << 20
READ, WRITE, FLUSH, ZERO = Command.READ, Command.WRITE, Command.FLUSH, Command.WRITE_ZEROES

LENGTHS = st.sampled_from((1, 511, 512, 4096, 65536, 100_000)) | st.integers(1, 150_000)
STEPS = st.tuples(
    st.sampled_from((READ, READ, WRITE, WRITE, ZERO, Command.TRIM, FLUSH, "park")),
    st.integers(0, 15),  # whose
    st.integers(0, SIZE - 1),  # where, in its part
    LENGTHS,
    st.integers(0, 255),  # written: 0 is a hole's
    st.booleans(),  # with FUA
    st.booleans(),  # not in memory
    st.booleans(),  # the disk takes its time
)


class Run:
    """Steps, done to an image and to its model.

    :ivar expected: (client, cookie, data of a read or None) of each request.
    """

    def __init__(self, served, clients):
        self.served, self.clients = served, clients
        self.model = bytearray(SIZE)
        self.expected = []

    def step(self, what, who, offset, length, byte, durable, cold, slow):
        """Begin one step; requests of the same client are apart, or wait for each other."""
        bench = self.served.bench
        bench.pool.at_once = True
        bench.settle()
        bench.pool.at_once = not slow
        self.served.image.cold = cold
        if what == "park":
            self.served.export.park()
            bench.turn()
            self.served.export.unpark()
            return
        number = who % len(self.clients)
        part = SIZE // len(self.clients)
        length = min(length, part // 2)
        offset = number * part + offset % (part - length)
        self.request(self.clients[number], what, offset, length, byte, durable)
        for _ in range(byte % 4):
            bench.turn()

    def request(self, client, what, offset, length, byte, durable):
        flags = CommandFlag.FUA if durable else 0
        within = slice(offset, offset + length)
        data = None
        if what == WRITE:
            self.model[within] = payload = bytes([byte]) * length
            cookie = client.write(offset, payload, flags)
        elif what == READ:
            data = bytes(self.model[within])
            cookie = client.ask(READ, offset, length, flags=flags)
        elif what == FLUSH:
            cookie = client.ask(FLUSH)
        else:
            self.model[within] = bytes(length)
            cookie = client.ask(what, offset, length, flags=flags)
        self.expected.append((client, cookie, data))

    def verify(self):
        """Raise unless all was answered, every read with the bytes, and the images are equal."""
        self.served.bench.pool.at_once = True
        for client, cookie, data in self.expected:
            assert client.error(cookie) == 0
            right = data is None or client.data(cookie) == data
            assert right, f"the read {cookie} has other bytes than the model"
        # Not compared by assert itself: where CI is set, pytest looks for all that differs.
        content = self.served.content()
        wrong = [at for at in range(len(content)) if content[at] != self.model[at]]
        assert not wrong, f"{len(wrong)} bytes differ from the model, the first at {wrong[0]}"


def run(feed, wishes, steps):
    served = Served(size=SIZE)
    try:
        outcome = Run(served, [served.client(feed, wish) for wish in wishes])
        for step in steps:
            outcome.step(*step)
        outcome.verify()
    finally:
        served.close()


class ModelTests(SynchronousTestCase):
    settings = settings(
        max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
    )

    @settings
    @given(
        st.sampled_from(FEEDS),
        st.sampled_from(list(STYLES.values())),
        st.lists(STEPS, min_size=20, max_size=60),
    )
    def test_one_client(self, feed, wish, steps):
        run(feed, [wish], steps)

    @settings
    @given(st.sampled_from(FEEDS), st.lists(STEPS, min_size=40, max_size=80))
    def test_four_clients(self, feed, steps):
        run(feed, [SIMPLE, STRUCTURED, EXTENDED, EXTENDED], steps)

    @settings
    @given(st.sampled_from(FEEDS), st.lists(STEPS, min_size=80, max_size=160))
    def test_sixteen_clients(self, feed, steps):
        run(feed, [SIMPLE, STRUCTURED, EXTENDED, EXTENDED] * 4, steps)

    def test_a_model_that_differs_is_noticed(self):
        served = Served(size=SIZE)
        self.addCleanup(served.close)
        for feed in (PlainFeed, StreamFeed):
            differs = Run(served, [served.client(feed)])
            differs.request(differs.clients[0], WRITE, 5, 1, 7, False)
            differs.model[6] ^= 1
            with self.assertRaises(AssertionError):
                differs.verify()
