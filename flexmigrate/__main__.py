"""``python -m flexmigrate``: the same as the command ``flexmigrate``."""

from flexmigrate.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
