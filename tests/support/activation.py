"""Socket activation as systemd does it (sd_listen_fds(3)), as a program.

    python -m support.activation [NAME=]PLACE... -- PROGRAM ARGUMENT...

Listens at each PLACE (HOST:PORT, or the path of a UNIX socket), and becomes the program, which
finds the sockets from descriptor 3 on, under their names.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys

FIRST = 3


def opened(place: str) -> socket.socket:
    """Return a socket that listens at *place*."""
    if place.startswith("/"):
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(place)
        os.chmod(place, 0o600)
        listening.listen()
        return listening
    host, _, port = place.rpartition(":")
    return socket.create_server((host, int(port)))


def become(sockets: dict[str, socket.socket], program: list[str]) -> None:
    """Become *program*, which is handed *sockets*."""
    # First out of the way of one another, then to where they are looked for.
    out_of_the_way = FIRST + len(sockets)
    moved = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, out_of_the_way) for each in sockets.values()]
    for number, descriptor in enumerate(moved):
        os.dup2(descriptor, FIRST + number, inheritable=True)
    os.environ.update(
        LISTEN_PID=str(os.getpid()),
        LISTEN_FDS=str(len(sockets)),
        LISTEN_FDNAMES=":".join(sockets),
    )
    os.execvp(program[0], program)


def main(words: list[str]) -> None:
    """Read the command line."""
    end = words.index("--")
    sockets = {}
    for word in words[:end]:
        name, equals, place = word.rpartition("=")
        sockets[name if equals else "unknown"] = opened(place)
    become(sockets, words[end + 1 :])


if __name__ == "__main__":
    main(sys.argv[1:])
