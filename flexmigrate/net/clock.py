"""Give a reactor a monotonic clock, so that no timer depends on the time of day.

Twisted's reactors ask ``time.time``. When somebody sets that clock back, every timer that is
pending waits for so much longer, and every duration that is being measured becomes negative.

The clock is CLOCK_MONOTONIC (clock_gettime(2)), not CLOCK_BOOTTIME: it stands still while the host
is suspended. Neither we nor the kernel can answer or hear anybody meanwhile, so that a peer's
silence says nothing about it, and time limits that ended during the suspension would end all
connections at once when the host wakes up. It is also the clock that epoll_wait(2), waits for
threads, and systemd's watchdog go by.

The time of day stays what logs, journals, reports, certificates and HTTP's Date are about.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

from flexmigrate.net.twisted_private import scheduled_calls


def use_monotonic_clock(reactor: Any) -> None:
    """Have *reactor* schedule and measure by a monotonic clock: by CLOCK_MONOTONIC, in seconds.

    For the reactor of the process, and best before anything is scheduled. Calls that are scheduled
    already keep the time that is left to them. A running ``LoopingCall`` doesn't: it would take the
    new clock for the old one. Twice is allowed.

    :param reactor: one of Twisted's own.
    :raises TypeError: it keeps its scheduled calls in a way that isn't known here.
    """
    if reactor.seconds is monotonic:
        return
    scheduled = scheduled_calls(reactor)
    shift = monotonic() - reactor.seconds()
    for call in scheduled:  # cancelled ones, too: all by as much, so that their order stays
        call.time += shift
        call.seconds = monotonic
    reactor.seconds = monotonic
