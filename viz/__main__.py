"""`python -m viz`: see `viz/cli.py`."""

import sys


def main(arguments: list[str] | None = None) -> int:
    """`viz.cli.main`, imported here so that Ctrl-C while matplotlib loads prints no traceback either."""
    try:
        from viz import cli

        return cli.main(arguments)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
