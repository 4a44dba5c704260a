"""The provenance of a run: the description stored in its record, and what a resume changed."""

import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from trainer.base.device import describe_cpu, describe_device
from trainer.config import FIELDS, VERSION, ModelShape, TrainingConfig
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
    """Return settings, versions, device, data and tokenizer under the keys that `viz/record/schema.py` documents.

    Args:
        recipe: parameters of the update that are not settings (`trainer/learning/optimizer.py`).
        flops: operations per document, and the peak of the machine (`trainer/learning/flops.py`).
        program: folder of this program, whose git commit is stored.
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
    """Return what affects the last bits of a step besides the settings. Stored in each checkpoint."""
    return {
        "train_slimpajama": VERSION,
        "torch": str(torch.__version__),
        "device": str(device) if device.type == "cpu" else describe_device(device),
        "cpu": describe_cpu(),
        "threads": torch.get_num_threads(),
    }


def changes(state: Mapping[str, Any], config: TrainingConfig, device: torch.device) -> tuple[str, bool]:
    """Return a description of what changed since `state` was saved, and whether the run continues bit-identically.

    It does with the same torch, CPU and number of threads, unless a flag changed a setting of the update, the schedule
    would have given the steps so far another learning rate (because it depends on the length of the run, which
    changed), the step can no longer be compiled, or a GPU chooses its kernels freely.
    """
    # A setting that did not exist when the run was saved had its default.
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
    if before(state["step"] - 1) != now(
        state["step"] - 1
    ):  # schedules that differ stay different: the last step is enough
        inexact.append(f"learning rate of the next step {before(state['step']):.2e} → {now(state['step']):.2e}")
    is_exact = not inexact and not any(FIELDS[key].metadata.get("typed") for key in changed)
    return ", ".join(words + inexact), is_exact


def _git_commit(folder: Path) -> str:
    """Return the commit checked out in `folder`; empty if it is not a git checkout."""
    if shutil.which("git") is None or not (folder / ".git").exists():
        return ""
    found = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip()
