"""A source that says goodbye, and nothing else."""

from __future__ import annotations

from support.scripted_source import arguments, connected

if __name__ == "__main__":
    connected(arguments(__doc__)).say_goodbye()
    print("the destination ended the connection", flush=True)
