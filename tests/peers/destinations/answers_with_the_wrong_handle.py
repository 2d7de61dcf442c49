"""A destination that answers a request that was never made."""

from __future__ import annotations

import argparse

from support.scripted_destination import Sender, arguments, play


def fault(sender: Sender, options: argparse.Namespace) -> None:
    sender.say_hello()
    write = sender.first_write()
    sender.obey(write)
    sender.answer(write, off_by=1 << 62)
    sender.wait_for_end()


if __name__ == "__main__":
    play(fault, arguments(__doc__))
