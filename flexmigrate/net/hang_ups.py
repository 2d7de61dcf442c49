"""Whose peer has hung up: asked of many connections with one call.

A connection of which nothing is read for now doesn't notice its end: that stands behind what was
sent before, in the kernel, or behind what TLS has not decrypted. The kernel knows it as soon as the
other side's FIN or reset has come (``POLLRDHUP``, poll(2)). With TCP, that may still wait at the
other side behind data for which there is no room here: who has something to be read may have hung
up, too. Of a peer that vanished without a FIN nothing is known before its probes have failed
(``net.tuning``).
"""

from __future__ import annotations

import contextlib
import select
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")

_GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_UNREAD = select.EPOLLIN


class HangUps(Generic[_T]):
    """Of some connections, each known by whatever was added with it."""

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        self._by_fd: dict[int, _T] = {}
        self._fds: dict[_T, int] = {}
        self._others: dict[_T, Any] = {}

    def add(self, about: _T, transport: Any) -> None:
        """Look at *transport* from now on, until ``remove``.

        One that has no descriptor of its own is asked for its attribute ``peer_has_ended``, if it
        has that.
        """
        try:
            fd = int(transport.fileno())
            if self._epoll is None:
                self._epoll = select.epoll()  # late, since a daemon forks
            self._epoll.register(fd, _GONE | _UNREAD)
        except (AttributeError, OSError, ValueError):
            self._others[about] = transport
            return
        stale = self._by_fd.get(fd)
        if stale is not None:
            del self._fds[stale]
        self._by_fd[fd] = about
        self._fds[about] = fd

    def remove(self, about: _T) -> None:
        """Forget it; its descriptor may be closed already."""
        self._others.pop(about, None)
        fd = self._fds.pop(about, None)
        if fd is None:
            return
        del self._by_fd[fd]
        assert self._epoll is not None
        with contextlib.suppress(OSError):  # closed, and with that forgotten by the kernel
            self._epoll.unregister(fd)
        if not self._fds:
            self._epoll.close()
            self._epoll = None

    def look(self) -> tuple[list[_T], list[_T]]:
        """Return those whose peer has hung up, and others of which there is something to be read.
        Doesn't wait.
        """
        gone: list[_T] = []
        unread: list[_T] = []
        for about, transport in self._others.items():
            if getattr(transport, "peer_has_ended", False):
                gone.append(about)
        if self._epoll is not None:
            for fd, events in self._epoll.poll(0, max(len(self._fds), 1)):
                if fd in self._by_fd:
                    (gone if events & _GONE else unread).append(self._by_fd[fd])
        return gone, unread
