"""`python -m viz`: see `viz/cli.py`."""

import sys


def main(arguments: list[str] | None = None) -> int:
    """`commands.main`; imported here, so that Ctrl-C while matplotlib is loaded is no traceback either."""
    try:
        from viz import cli as commands

        return commands.main(arguments)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
