"""One migration of real processes, a client that writes, and what befalls them; see plans.py.

A supervisor for each end starts again what has died, as systemd would, and holds each process to
its exit status. An operator asks for the migration until it is done. Each of them is a thread.
"""

from __future__ import annotations

import contextlib
import errno
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from flexmigrate.migration.ownership.status import look
from flexmigrate.wire.handover import State
from storm.judging import Ends, Violation
from storm.plans import SIZE, Moment, Plan
from support.images import sparse_image
from support.privileges import small_filesystem
from support.processes import Child, Children, flexmigrate, run
from support.raw_nbd import Ended, RawClient
from support.record import Journal, Record, read_journal
from support.relay import Relay
from support.verifying_writer import Writer

TICK = 0.005  # seconds between two looks at what can't be waited for
PATIENCE = 60.0  # seconds until all has to be settled, once nothing more happens
ARMED = 3.0  # seconds for which a fault waits for its moment
LASTING = 1.2  # seconds that a full disk, a bad one or a stalled network lasts
DEPTH = 2  # requests of the client that are under way


class Over(ConnectionAbortedError):
    """Nobody is to go on."""


class End:
    """The source or the destination: its processes, one after the other, and their supervisor.

    :ivar role: what is started: "serve" or "listen".
    :ivar finished: whether its supervisor has nothing more to start.
    """

    def __init__(self, storm: Storm, name: str, image: Path, role: str) -> None:
        self.storm = storm
        self.name = name
        self.image = image
        self.role = role
        self.sock = storm.folder / f"{name}.sock"
        self.address = storm.folder / f"{name}.nbd"
        self.finished = False
        self.lives: list[Child] = []
        self._dealt: defaultdict[int, set[int]] = defaultdict(set)

    @property
    def state(self) -> State:
        """What its journal says."""
        return look(str(self.image)).state

    @property
    def was_killed(self) -> bool:
        """Whether any of its processes was, as far as the storm knows."""
        return any(signal.SIGKILL in each for each in self._dealt.values())

    def has_said(self, text: str) -> bool:
        """Whether one of its processes has logged that."""
        return any(text in line for child in self.lives for line in child.lines)

    def deal(self, number: signal.Signals) -> None:
        """Send its process a signal."""
        child = self.lives[-1]
        self._dealt[child.pid].add(number)
        with contextlib.suppress(ProcessLookupError):
            child.send(number)

    def start(self) -> Child:
        """Start what it has to run now."""
        words = [self.role, "--file", str(self.image), "--sock", str(self.sock)]
        if self.role == "serve":
            words += ["--addr", str(self.address)]
            if self.name == "destination":  # the source may come to ask
                words += ["--endpoint", "tcp:0:interface=127.0.0.1"]
        else:
            words += ["--addr", "127.0.0.1", "--port", "0"]
            if self.storm.plan.rebind:
                words += ["--rebind-addr", str(self.address)]
        child = self.storm.children.flexmigrate(*words)
        self.lives.append(child)
        return child

    def supervise(self) -> None:
        """Start it again whenever it has ended, until it has done its work.

        :raises Violation: it has ended with a status that isn't true.
        """
        over = self.storm.over
        child = self.lives[0]
        while not over.is_set():
            if self.name == "destination":
                self._lead_to(child)
            while child.running and not over.wait(TICK):
                pass
            if over.is_set():
                return
            self._judge(child, child.wait())
            if self.finished or over.wait(self.storm.plan.restart):
                return
            child = self.start()

    def _lead_to(self, child: Child) -> None:
        """Have the network lead to where it listens now, if it comes to that."""
        with contextlib.suppress(AssertionError):
            self.storm.relay.lead_to("127.0.0.1", _port(child))

    def _judge(self, child: Child, status: int) -> None:
        dealt = self._dealt[child.pid]
        # SIGTERM ends at once what is only starting, and has done nothing.
        by_signal = status == -9 or (status == -15 and not child.lines)
        if status not in (0, 1) and not (by_signal and -status in dealt):
            raise Violation(f"{self.name}: status {status}\n{child.story()}")
        if self.name == "source":
            self._judge_source(child, status, dealt)
        elif self.owns():
            self.role = "serve"
        elif status == 0:
            raise Violation(f"the destination ended with 0, and is no owner\n{child.story()}")

    def _judge_source(self, child: Child, status: int, dealt: set[int]) -> None:
        state, plain = self.state, self.storm.plan.plain
        if status == 0 and state is State.COMMITTED:
            raise Violation(f"the source ended with 0 in the midst of it\n{child.story()}")
        if status == 0 and state is not State.DONE and not dealt:
            raise Violation(f"the source ended with 0 unasked\n{child.story()}")
        destination = self.storm.destination
        taken = destination.owns() or (plain and destination.was_killed)  # docs/migration.rst
        if status == 0 and state is State.DONE and not taken:
            raise Violation(f"the source ended with 0, and there is no owner\n{child.story()}")
        self.finished = state is State.DONE or (plain and state is State.COMMITTED)

    def owns(self) -> bool:
        """Whether the image is here, as a human would see who looks for it."""
        standing = look(str(self.image))
        if self.storm.plan.plain and standing.record is None:
            return not standing.marker
        return standing.state is State.OWNER


class Storm:
    """See the module."""

    def __init__(self, plan: Plan, folder: Path, children: Children) -> None:
        self.plan = plan
        self.folder = folder
        self.children = children
        self.over = threading.Event()
        self.enough = threading.Event()
        self.original = self._make(folder / "original")
        self._stack = contextlib.ExitStack()
        self.source = End(self, "source", folder / "image", "serve")
        self.destination = End(self, "destination", folder / "d" / "copy", "listen")
        self.ends = Ends(self.source.image, self.destination.image)
        self.journal = folder / "writes"
        self.connected_to = ""  # name of the end that the client is with
        self.relay: Relay

    def __enter__(self) -> Storm:
        with self._stack as stack:
            room = self.folder / "d"
            if self.plan.full:
                stack.enter_context(small_filesystem(room, 2 * SIZE))
            else:
                room.mkdir()
            # What lay there before is none of the image's.
            leftover = iter([(SIZE // 4, SIZE // 8)])
            sparse_image(self.destination.image, SIZE, leftover, self.plan.seed + 1)
            if self.plan.bad:
                stack.enter_context(self._failing_disk())
            else:
                self._make(self.source.image)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._kill_all()
        self._stack.close()

    def _make(self, path: Path) -> Path:
        """Make an image with holes, as it is before anything is written."""
        parts = [(at, SIZE // 16) for at in range(0, SIZE, SIZE // 8)]
        return sparse_image(path, SIZE, iter(parts), self.plan.seed)

    @contextlib.contextmanager
    def _failing_disk(self) -> Iterator[None]:
        """Have the source's image on a disk that can't be read while there is a file `bad`."""
        disk, image = self._make(self.folder / "disk"), self.source.image
        image.touch()
        words = ("nbdkit", "-f", "--exit-with-parent", "--filter=error", "file", str(disk))
        rates = ("error-pread-rate=100%", f"error-file={self.folder / 'bad'}")
        mounted = self.children.start("nbdfuse", str(image), "[", *words, *rates, "]")
        try:
            while image.stat().st_size != SIZE:
                if not mounted.running:
                    raise AssertionError(mounted.story())
                time.sleep(TICK)
            yield
        finally:
            run("umount", "--lazy", str(image))
            mounted.wait()

    # All of it

    def play(self) -> Path:
        """Let it all happen; return the image that is canonical then.

        :raises Violation: what must not have happened.
        """
        for end in (self.source, self.destination):
            end.start()
        for end in (self.source, self.destination):
            end.lives[0].listening()
        with Relay("127.0.0.1", _port(self.destination.lives[0])) as self.relay:
            works = self.source.supervise, self.destination.supervise, self._ask, self._write
            with ThreadPoolExecutor(len(works)) as pool:
                doing = [pool.submit(work) for work in works]
                try:
                    self._befall(doing)
                finally:
                    self.over.set()
                    self._kill_all()
            self._kill_all()  # what a supervisor had just started
            for each in doing:
                each.result()
        record = read_journal(self.journal, self.original)
        return self.ends.judge(record, self.children, self.plan.plain)

    def _befall(self, doing: list[Future[None]]) -> None:
        for number, (moment, act) in enumerate(self.plan.faults, start=1):
            came = self._wait_for(moment, doing)
            print(f"fault {number}: {moment}: {act}{'' if came else ' (at another moment)'}")
            if self.plan.abrupt and number == len(self.plan.faults):
                return
            self._do(act)
            self.relay.start_again()
        self._until(self._is_settled, PATIENCE, doing, "it never ends")
        self.enough.set()
        if self.source.finished and self.destination.owns():
            doing[-1].result(PATIENCE)  # the client has all its answers, and says goodbye
            self.over.set()
            self.destination.deal(signal.SIGTERM)
            self.destination.lives[-1].expect_exit(0)

    def _until(
        self, met: Callable[[], bool], seconds: float, doing: list[Future[None]], else_: str = ""
    ) -> bool:
        deadline = time.monotonic() + seconds
        while not met():
            for each in doing:
                if each.done():
                    each.result()
            if time.monotonic() > deadline:
                if else_:
                    raise Violation(f"{else_}: not within {seconds:g} s")
                return False
            time.sleep(TICK)
        return True

    def _wait_for(self, moment: Moment, doing: list[Future[None]]) -> bool:
        relay, before = self.relay, self.relay.forwarded
        if isinstance(moment.wire, bytes):
            relay.stop_at(moment.wire, behind=moment.behind)

        def has_come() -> bool:
            if moment.said:
                name, text = moment.said
                return any(end.has_said(text) for end in self._ends() if end.name == name)
            if isinstance(moment.wire, bytes):
                return relay.has_stopped
            return relay.forwarded - before >= moment.wire

        came = self._until(lambda: has_come() or self._is_settled(), ARMED, doing)
        time.sleep(moment.delay)
        return came and has_come()

    def _is_settled(self) -> bool:
        """Whether the destination serves, and the client with it; or a human has to look."""
        if not self.source.finished:
            return False
        if self.plan.plain and self.source.state is State.COMMITTED:
            return True
        if self.plan.plain and self.destination.was_killed and not self.destination.owns():
            return True
        return self.connected_to == "destination"

    # What happens

    def _do(self, act: str) -> None:
        verb, _, whom = act.partition(" ")
        if verb in ("kill", "end"):
            number = signal.SIGKILL if verb == "kill" else signal.SIGTERM
            for end in (self.source, self.destination):
                if whom in (end.name, "both"):
                    end.deal(number)
        elif act == "cut":
            self.relay.cut()
        elif act == "stall":
            self.relay.stall()
            time.sleep(LASTING)
            self.relay.resume()
        elif act == "full disk":
            self._fill()
        else:
            bad = self.folder / "bad"
            bad.touch()
            time.sleep(LASTING)
            bad.unlink()

    def _fill(self) -> None:
        """Take all the room that the destination's disk has left, and give it back."""
        filler = self.folder / "d" / "filler"
        try:
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            time.sleep(LASTING)
        finally:
            filler.unlink()

    # Who takes part

    def _ask(self) -> None:
        """Ask each source for the migration, until it does that."""
        asked: Child | None = None
        while not self.over.wait(0.1):
            source = self.source.lives[-1]
            if self.source.finished or source is asked or not source.running:
                continue
            words = ["mirror", "--addr", "127.0.0.1", "--port", str(self.relay.port)]
            words += ["--sock", str(self.source.sock), "--max-bps", str(self.plan.max_bps)]
            words += ["--handover", "plain" if self.plan.plain else "session"]
            if self.plan.unlink:
                words.append("--unlink")
            if flexmigrate(*words).returncode == 0 and source is self.source.lives[-1]:
                asked = source

    def _write(self) -> None:
        """Write, and read back, wherever the image is."""
        record = Record(self.plan.seed, self.original)
        journal = Journal(self.journal, record)
        forgiven = frozenset({errno.EIO}) if self.plan.bad else frozenset()
        writer = Writer(self.dial, journal, DEPTH, forgiven=forgiven, tell=lambda _: None)
        try:
            writer.run(lambda _: self.enough.is_set())
        except Over:
            pass
        finally:
            journal.close()

    def dial(self) -> RawClient:
        """Connect to the one server that there is.

        :raises Violation: there are two.
        """
        while True:
            if self.over.wait(TICK):
                raise Over
            found = {end.name: client for end in self._ends() if (client := _connect(end.address))}
            if len(found) == 2:
                for client in found.values():
                    client.close()
                raise Violation("both ends serve")
            if found:
                ((self.connected_to, client),) = found.items()
                return client

    def _ends(self) -> tuple[End, End]:
        return self.source, self.destination

    def _kill_all(self) -> None:
        for end in self._ends():
            for child in end.lives[-1:]:
                end.deal(signal.SIGKILL)
                child.wait()


def _port(child: Child) -> int:
    """Return the port where a destination listens for its source."""
    return int(child.wait_for(r"listening on 127\.0\.0\.1:(\d+)")[1])


def _connect(address: Path) -> RawClient | None:
    try:
        return RawClient.to(str(address), 0, timeout=PATIENCE)
    except (Ended, ConnectionError, FileNotFoundError):
        return None
