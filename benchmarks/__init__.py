"""What this program is held against, in turns and in ratios: `python -m benchmarks --help`."""

import os
import signal

import trainer  # noqa: F401  # before torch: it says how long OpenMP's threads spin, in a benchmark as in a run

WINDOW = 1000
"""Steps at the beginning and at the end of a long run that are compared."""


def as_ours() -> None:
    """For a process of its own: Ctrl-C ends it without a word."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def as_it_comes() -> None:
    """Likewise, with torch as it is for others than us."""
    as_ours()
    os.environ.pop("GOMP_SPINCOUNT", None)
    import torch  # noqa: F401  # reads it now
