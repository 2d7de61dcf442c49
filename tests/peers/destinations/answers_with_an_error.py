"""A destination whose disk fails: a write is answered with EIO."""

from __future__ import annotations

import argparse

from support.raw_nbd import EIO
from support.scripted_destination import Sender, arguments, play


def fault(sender: Sender, options: argparse.Namespace) -> None:
    sender.say_hello()
    write = sender.first_write()
    sender.obey(write)
    sender.answer(write, error=EIO)
    sender.wait_for_end()


if __name__ == "__main__":
    play(fault, arguments(__doc__))
