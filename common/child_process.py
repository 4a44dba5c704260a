"""Start child processes so that they import our modules, and no others with the same names."""

import os

from common.run_marker import PROJECT

FOLDER = PROJECT
"""Their working folder: `-m` searches it first, so files in the user's folder can't replace our modules."""


def environment() -> dict[str, str]:
    """Return the environment of a child process. It uses one thread and leaves the others to the trainer."""
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    paths = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
    return os.environ | single | {"PYTHONPATH": paths, "PYTHONIOENCODING": "utf-8"}
