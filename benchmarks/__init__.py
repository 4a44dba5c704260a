"""What this program is held against, in turns and in ratios: `python -m benchmarks --help`."""

import os

import trainer  # noqa: F401  # before torch: it says how long OpenMP's threads spin, in a benchmark as in a run

WINDOW = 1000
"""Steps at the beginning and at the end of a long run that are compared."""


def as_it_comes() -> None:
    """For a process of its own: torch, for others than us, as it is by itself."""
    os.environ.pop("GOMP_SPINCOUNT", None)
    import torch  # noqa: F401  # reads it now
