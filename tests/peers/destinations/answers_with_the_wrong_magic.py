"""A destination whose reply begins with one wrong bit."""

from __future__ import annotations

import argparse

from support.raw_nbd import REPLY_MAGIC
from support.scripted_destination import Sender, arguments, play


def fault(sender: Sender, options: argparse.Namespace) -> None:
    sender.say_hello()
    write = sender.first_write()
    sender.obey(write)
    sender.answer(write, magic=REPLY_MAGIC ^ 1)
    sender.wait_for_end()


if __name__ == "__main__":
    play(fault, arguments(__doc__))
