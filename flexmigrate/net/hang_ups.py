"""Detection of peers that have hung up, among many connections with one system call.

While nothing is read from a connection, its end goes unnoticed: the end comes after data that was
sent before, in the kernel's buffer, or that TLS has not decrypted yet. The kernel knows of it as
soon as the peer's FIN or reset has arrived (``POLLRDHUP``, poll(2)). With TCP, the FIN may also be
kept at the peer behind data for which there is no room here. So a peer with unread data may have
hung up, too. A peer that vanished without a FIN is noticed only when its keepalive probes have
failed (``net.tuning``).
"""

from __future__ import annotations

import contextlib
import select
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")

_GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_UNREAD = select.EPOLLIN


class HangUps(Generic[_T]):
    """A set of connections, each identified by the object that was added with it."""

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        self._by_fd: dict[int, _T] = {}
        self._fds: dict[_T, int] = {}
        self._others: dict[_T, Any] = {}

    def add(self, about: _T, transport: Any) -> None:
        """Watch *transport* until ``remove``.

        If it has no descriptor of its own, its attribute ``peer_has_ended`` is asked, if it has
        one.
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
        """Stop watching; the descriptor may be closed already."""
        self._others.pop(about, None)
        fd = self._fds.pop(about, None)
        if fd is None:
            return
        del self._by_fd[fd]
        assert self._epoll is not None
        with contextlib.suppress(OSError):  # closed, so the kernel has removed it already
            self._epoll.unregister(fd)
        if not self._fds:
            self._epoll.close()
            self._epoll = None

    def look(self) -> tuple[list[_T], list[_T]]:
        """Return the connections whose peer has hung up, and others with unread data. Doesn't
        block.
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
