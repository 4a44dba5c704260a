"""What `torch.compile` needs, and what it gives a run: when a step is compiled."""

import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path

import torch

SECONDS_TO_COMPILE = 30.0
"""What compiling takes at the start of a run with nothing in the cache, at any size: measured on two slow cores."""
GAIN = 0.1
"""Share of an eager step that a compiled one saves: 0.25 of `tiny`, 0.12 of `small`, 0.05 of `base`
(`docs/performance.md`).
"""


def allow_graphs() -> None:
    """Set torch up, for the whole process, to compile for as many models as there are: it counts by function."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)


def why_not_compile(device: torch.device) -> str:
    """What `torch.compile` lacks here, or nothing. On a CPU it needs a C++ compiler and the Python headers."""
    if os.environ.get("TORCH_COMPILE_DISABLE") == "1":
        return "TORCH_COMPILE_DISABLE is set"
    if device.type == "cuda":
        return "" if importlib.util.find_spec("triton") else "triton is not installed"
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # no other is tried
    if not shutil.which(compiler):
        return f"there is no C++ compiler ({compiler})"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "the Python headers are missing"
    return ""


def compiling_pays(steps: int, seconds: float) -> bool:
    """Whether a run of `steps` steps ends sooner with a compiled step, if an eager one takes `seconds`."""
    return steps * seconds * GAIN > SECONDS_TO_COMPILE
