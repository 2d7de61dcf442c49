"""A monotonic clock for a reactor, so that no timer depends on the time of day.

Twisted's reactors use ``time.time``. If that clock is set back, every pending timer waits longer by
the same amount, and every duration that is being measured becomes negative.

The clock is CLOCK_MONOTONIC (clock_gettime(2)), not CLOCK_BOOTTIME: it stands still while the host
is suspended. During that time neither we nor the kernel can send or receive, so the silence of a
peer means nothing, and timeouts that expired meanwhile would end all connections at once when the
host wakes up. epoll_wait(2), waits for threads, and systemd's watchdog use the same clock.

Logs, journals, reports, certificates and HTTP's Date go on using the time of day.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

from flexmigrate.net.twisted_private import scheduled_calls


def use_monotonic_clock(reactor: Any) -> None:
    """Make *reactor* schedule and measure with CLOCK_MONOTONIC, in seconds.

    Meant for the process's reactor, preferably before anything is scheduled. Calls that are
    scheduled already keep the time that is left to them. A running ``LoopingCall`` doesn't: it
    would compare the new clock with the old one. Repeated calls have no effect.

    :param reactor: one of Twisted's own.
    :raises TypeError: the reactor keeps its scheduled calls in an unknown way.
    """
    if reactor.seconds is monotonic:
        return
    scheduled = scheduled_calls(reactor)
    shift = monotonic() - reactor.seconds()
    for call in scheduled:  # cancelled ones, too, by the same amount, so that their order stays
        call.time += shift
        call.seconds = monotonic
    reactor.seconds = monotonic
