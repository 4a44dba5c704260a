"""What `torch.compile` needs, and what it gives a run: when a step is compiled."""

import contextlib
import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch

SECONDS_TO_COMPILE = 30.0
"""What compiling takes at the start of a run with nothing in the cache: measured on two slow cores, at three sizes."""
GAIN = 0.1
"""Share of an eager step that a compiled one saves: 0.25 of `tiny`, 0.12 of `small`, 0.05 of `base`
(`docs/performance.md`).
"""


@contextlib.contextmanager
def compiler_settings(longest: int) -> Iterator[None]:
    """In here graphs are made for all lengths up to `longest`, and everything that can fail fails at once."""
    import torch._functorch.config
    import torch.fx.experimental._config

    with (
        # Which kernels are taken follows from the first length that is seen, which torch's cache does not look at.
        torch.compiler.config.patch(cache_key_tag=str(longest)),  # type: ignore[attr-defined]
        # A length that happens to equal the width would be taken for the same thing.
        torch.fx.experimental._config.patch(use_duck_shape=False),  # type: ignore[attr-defined]
        # Else a backward pass that can't be made is told by a traceback, and tried again later.
        torch._functorch.config.patch(force_non_lazy_backward_lowering=True),
    ):
        yield


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
