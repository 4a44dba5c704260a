"""What `torch.compile` needs, and what it gives a run: when a step is compiled."""

import importlib.util
import shutil
import sysconfig
from pathlib import Path

import torch

SECONDS_PER_GRAPH, SECONDS_PER_LAYER = 6.0, 6.0
"""What a graph takes to compile, in all and for each layer, with nothing in the cache: measured on two slow cores."""
GAIN = 0.25
"""Share of an eager step that a compiled one saves (`docs/performance.md`)."""


def allow_graphs(count: int) -> None:
    """Set torch up, for the whole process, to compile up to `count` static graphs of one function."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * count)


def why_not_compile(device: torch.device) -> str:
    """What `torch.compile` lacks here, or nothing. On a CPU it needs a C++ compiler and the Python headers."""
    if device.type != "cpu":
        return "" if importlib.util.find_spec("triton") else "triton is not installed"
    if not (shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")):
        return "there is no C++ compiler"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "the Python headers are missing"
    return ""


def seconds_to_compile(layers: int) -> float:
    """Of one graph."""
    return SECONDS_PER_GRAPH + SECONDS_PER_LAYER * layers


def compiling_pays(steps: int, seconds: float, *, layers: int, graphs: int) -> bool:
    """Whether a run of `steps` steps ends sooner with a compiled step, if an eager one takes `seconds`.

    Args:
        graphs: padded lengths, each of which is compiled for itself.
    """
    return steps * seconds * GAIN > graphs * seconds_to_compile(layers)
