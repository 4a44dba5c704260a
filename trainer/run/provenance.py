"""Where a run comes from: what the store keeps of it beside its rows, and what a resume changed."""

import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from trainer.arguments import VERSION
from trainer.base.device import describe_cpu, describe_device
from trainer.config import FIELDS, ModelShape, TrainingConfig
from trainer.data.sources import DataSource
from trainer.data.tokenizer import Tokenizer
from trainer.learning.schedule import make_scheduler

_LIBRARIES = ("torch", "numpy", "datasets", "sentencepiece", "tokenizers", "zstandard", "matplotlib")


def describe_run(
    config: TrainingConfig,
    *,
    shape: ModelShape,
    recipe: Mapping[str, float],
    flops: Mapping[str, float],
    source: DataSource,
    tokenizer: Tokenizer,
    device: torch.device,
    program: Path,
) -> dict[str, Any]:
    """Settings, versions, device, data and tokenizer, by the names that `viz/record/writer.py` knows.

    Args:
        recipe: what the update is made with, beside the settings (`trainer/learning/optimizer.py`).
        flops: what a document takes and what the machine can do (`trainer/learning/flops.py`).
        program: the folder of this program, whose git commit is kept.
    """
    parameters = shape.parameters(tokenizer.vocab_size)
    libraries = {name: version(name) for name in _LIBRARIES}
    return {
        "config": config.to_dict(),
        "recipe": dict(recipe),
        "flops": dict(flops),
        "versions": {"train_slimpajama": VERSION, "python": platform.python_version(), **libraries},
        "git_commit": _git_commit(program),
        "device": describe_device(device),
        "dtype": config.dtype,
        "model": f"{config.model_size or shape} {parameters / 1e6:.1f} M",
        "parameters": parameters,
        "source": source.name,
        "revision": source.revision,
        "note": source.note,
        "tokenizer": tokenizer.model_bytes,
        "tokenizer_hash": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
    }


def kernels(device: torch.device) -> dict[str, Any]:
    """What, beside the settings, decides the last bits of a step: kept with each checkpoint."""
    return {
        "train_slimpajama": VERSION,
        "torch": str(torch.__version__),
        "device": str(device) if device.type == "cpu" else describe_device(device),
        "cpu": describe_cpu(),
        "threads": torch.get_num_threads(),
    }


def changes(state: Mapping[str, Any], config: TrainingConfig, device: torch.device) -> tuple[str, bool]:
    """What differs from the run as it was saved in `state`, in words, and whether it goes on to the last bit.

    It does with the same torch, CPU and threads, unless a setting that changes what is computed was typed, the steps
    until here had another learning rate than they would have now (a schedule that looks at the end of the run, which
    has moved), the step can no longer be compiled, or a GPU chooses its kernels freely.
    """
    # A setting that was not there yet when the run was saved had its default.
    saved = TrainingConfig(**{key: value for key, value in state["config"].items() if key in FIELDS})
    old, new = saved.to_dict(), config.to_dict()
    changed = [key for key in FIELDS if old[key] != new[key] and not key.endswith("_dir")]
    words = [f"{key} {old[key]} → {new[key]}" for key in changed]
    here = kernels(device)
    there = state["kernels"]
    inexact = [f"{key} {there[key]} → {here[key]}" for key in here if there[key] != here[key]]
    if device.type == "mps" or (device.type != "cpu" and not config.deterministic):
        inexact.append(f"{device.type} without --deterministic" if device.type == "cuda" else device.type)
    before, now = (make_scheduler(settings).get_learning_rate for settings in (old, new))
    if before(state["step"] - 1) != now(state["step"] - 1):  # schedules part for good, so the last step tells of all
        inexact.append(f"learning rate of the next step {before(state['step']):.2e} → {now(state['step']):.2e}")
    is_exact = not inexact and not any(FIELDS[key].metadata.get("typed") for key in changed)
    return ", ".join(words + inexact), is_exact


def _git_commit(folder: Path) -> str:
    """The commit that is checked out in `folder`, or nothing where it did not come by git."""
    if shutil.which("git") is None or not (folder / ".git").exists():
        return ""
    found = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip()
