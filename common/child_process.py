"""How processes of our own are started: with our modules and no others of those names."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""Where they are started: `-m` looks there first, so that nothing in the user's folder may stand for our modules."""


def environment() -> dict[str, str]:
    """Of such a process. It computes with one thread: the others are the trainer's."""
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | single | {"PYTHONPATH": paths, "PYTHONIOENCODING": "utf-8"}
