"""Measure speed and learning, and compare them with alternatives: see `python -m benchmarks --help`."""

import os
import signal

import trainer  # noqa: F401  # before torch: sets the OpenMP spin, so a benchmark measures what a run does

WINDOW = 1000
"""Number of steps at the beginning and at the end of a long run that are compared."""


def as_ours() -> None:
    """Set up a child process that Ctrl-C ends without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def as_it_comes() -> None:
    """Set up such a process with the default settings of torch, for the contenders that are not ours."""
    as_ours()
    os.environ.pop("GOMP_SPINCOUNT", None)
    import torch  # noqa: F401  # reads the variable on import
