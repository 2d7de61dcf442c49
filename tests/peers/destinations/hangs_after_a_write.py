"""A destination that takes a write, and then neither answers nor goes away."""

from __future__ import annotations

import argparse

from support.scripted_destination import Sender, arguments, play


def fault(sender: Sender, options: argparse.Namespace) -> None:
    sender.say_hello()
    sender.obey(sender.first_write())
    sender.wait_for_end()


if __name__ == "__main__":
    play(fault, arguments(__doc__))
