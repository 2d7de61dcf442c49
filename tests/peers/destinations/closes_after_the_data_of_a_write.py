"""A destination that carries out a write, and goes away instead of answering."""

from __future__ import annotations

import argparse

from support.scripted_destination import Sender, arguments, play


def fault(sender: Sender, options: argparse.Namespace) -> None:
    sender.say_hello()
    sender.obey(sender.first_write())
    print("closed after the data of a write", flush=True)


if __name__ == "__main__":
    play(fault, arguments(__doc__))
