"""What `torch.compile` needs, and what it gives a run: when a step is compiled."""

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
"""What compiling takes at the start of a run with nothing in the cache: measured on two slow cores, at three sizes, and
beside one H100 at two. On other devices it was never tried, and is not done unasked.
"""
GAIN = {"cpu": 0.1, "cuda": 0.15}
"""Share of an eager step that a compiled one saves: on a CPU 0.25 of `tiny`, 0.12 of `small`, 0.05 of `base`; on an
H100 0.23 in turns, and less in a slower session (`docs/performance.md`).
"""


@contextlib.contextmanager
def compiler_settings(longest: int) -> Iterator[None]:
    """In here graphs are made for all lengths up to `longest`, and everything that can fail fails at once."""
    import torch._functorch.config
    import torch._inductor.config
    import torch.fx.experimental._config

    with (
        # Which kernels are taken follows from the first length that is seen, which torch's cache does not look at.
        torch.compiler.config.patch(cache_key_tag=str(longest)),  # type: ignore[attr-defined]
        # A length that happens to equal the width would be taken for the same thing.
        torch.fx.experimental._config.patch(use_duck_shape=False),  # type: ignore[attr-defined]
        # Else a backward pass that can't be made is told by a traceback, and tried again later.
        torch._functorch.config.patch(force_non_lazy_backward_lowering=True),
        # Else what is timed on a GPU, differently each time, decides how matrices are padded.
        torch._inductor.config.patch(deterministic=torch.are_deterministic_algorithms_enabled()),
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


def compiling_pays(steps: int, seconds: float, kind: str) -> bool:
    """Whether a run of `steps` steps ends sooner with a compiled step, if an eager one takes `seconds`.

    Args:
        kind: of device.
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
    """Compile the step where that is asked for, or ends the run sooner, and can be done. Whether it was.

    Args:
        compile_step: does it, or raises MachineError.
        wanted: what the user asked for; None: what ends sooner.
        steps: of the run.
        seconds: that an eager step takes.
        compiling: entered meanwhile.
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
        say("Compiling the step: half a minute or more, where torch has never done it before")
        try:
            with compiling():
                compile_step()
        except MachineError as error:
            lacking = str(error)
    if lacking:
        say(f"{why}: {lacking}, so the step runs without it")
    return not lacking
