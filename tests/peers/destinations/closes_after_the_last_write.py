"""A destination that answers every write, and goes away when the source wants all of it flushed."""

from __future__ import annotations

import argparse

from support.raw_nbd import FLUSH
from support.scripted_destination import Sender, arguments, play


def fault(sender: Sender, options: argparse.Namespace) -> None:
    sender.say_hello()
    while (request := sender.request()).command != FLUSH:
        sender.answer(request, sender.obey(request))
    print("closed after the last write", flush=True)


if __name__ == "__main__":
    play(fault, arguments(__doc__))
