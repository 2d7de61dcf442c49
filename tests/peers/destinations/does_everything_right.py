"""A destination without a fault, to show that the others fail for theirs."""

from __future__ import annotations

from support.scripted_destination import arguments, play

if __name__ == "__main__":
    play(None, arguments(__doc__))
