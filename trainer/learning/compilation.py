"""Whether to compile the training step: what `torch.compile` needs, and when it makes a run faster."""

import contextlib
import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from trainer.errors import MachineError

SECONDS_TO_COMPILE = {"cpu": 30.0, "cuda": 25.0}
"""Seconds to compile with an empty cache: measured for three model sizes on two slow cores, and for two with an H100.
Other devices were never measured, so they compile only if `--compile` is given.
"""
GAIN = {"cpu": 0.1, "cuda": 0.15}
"""Share of an eager step's time that compiling saves: on a CPU 0.25 for `tiny`, 0.12 for `small`, 0.05 for `base`; on
an H100 0.23, or less in a slower session (`docs/performance.md`).
"""


@contextlib.contextmanager
def compiler_settings(longest: int) -> Iterator[None]:
    """Inside, graphs are compiled for every length up to `longest`, and a failure raises immediately."""
    import torch._functorch.config
    import torch._inductor.config
    import torch.fx.experimental._config

    with (
        # The choice of kernels depends on the first length, which is not part of torch's cache key.
        torch.compiler.config.patch(cache_key_tag=str(longest)),  # type: ignore[attr-defined]
        # Otherwise a length that happens to equal the width would be treated as the same symbol.
        torch.fx.experimental._config.patch(use_duck_shape=False),  # type: ignore[attr-defined]
        # Otherwise a backward pass that fails to compile prints a traceback and is retried later.
        torch._functorch.config.patch(force_non_lazy_backward_lowering=True),
        # Otherwise timings on a GPU, which vary, decide how matrices are padded.
        torch._inductor.config.patch(deterministic=torch.are_deterministic_algorithms_enabled()),
    ):
        yield


def why_not_compile(device: torch.device) -> str:
    """Return what `torch.compile` lacks here, or "". On a CPU it needs a C++ compiler and the Python headers."""
    if os.environ.get("TORCH_COMPILE_DISABLE") == "1":
        return "TORCH_COMPILE_DISABLE is set"
    if device.type == "cuda":
        return "" if importlib.util.find_spec("triton") else "triton is not installed"
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # torch tries no other
    if not shutil.which(compiler):
        return f"there is no C++ compiler ({compiler})"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "the Python headers are missing"
    return ""


def compiling_pays(steps: int, seconds: float, kind: str) -> bool:
    """Return whether a run of `steps` steps ends sooner with a compiled step.

    Args:
        seconds: time of an eager step.
        kind: device type.
    """
    return kind in GAIN and steps * seconds * GAIN[kind] > SECONDS_TO_COMPILE[kind]


def compile_where_it_pays(
    compile_step: Callable[[], None],
    wanted: bool | None,
    device: torch.device,
    *,
    steps: int,
    seconds: float,
    say: Callable[[str], None],
    compiling: Callable[[], AbstractContextManager[object]],
    pays: Callable[[int, float, str], bool] = compiling_pays,
) -> bool:
    """Compile the step if the user wants it or it makes the run faster. Return whether the step is compiled.

    Args:
        compile_step: compiles it, or raises MachineError.
        wanted: the user's choice; None: decide by the run's length.
        steps: number of steps of the run.
        seconds: time of an eager step.
        say: prints a line.
        compiling: a context manager that is active during compilation.
        pays: decides where the user has not.
    """
    why = "--compile"
    if wanted is None:
        wanted = pays(steps, seconds, device.type)
        why = f"A run of {steps:,} documents would be faster compiled"
    if not wanted:
        return False
    lacking = why_not_compile(device)
    if not lacking:
        say("Compiling the step: this takes half a minute or more the first time")
        try:
            with compiling():
                compile_step()
        except MachineError as error:
            lacking = str(error)
    if lacking:
        say(f"{why}: {lacking}, so the step runs uncompiled")
    return not lacking
