"""The contenders that are timed: our step, our whole run, and the `Trainer` of transformers."""

import json
import multiprocessing
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import zstandard

from benchmarks import as_ours
from trainer.base.device import choose_device, choose_dtype, keep_freed_memory, multiply_fp32_by_onednn
from trainer.config import MODEL_SIZES
from trainer.learning.step import TrainingStep
from trainer.model.language_model import LanguageModel

PROJECT = Path(__file__).resolve().parents[1]
VOCABULARY, LENGTH = 8192, 256


def own_process(begin: Callable[[], None] = as_ours) -> ProcessPoolExecutor:
    """Return a child process in which a contender is timed, so that process-wide settings of ours affect only ours.

    Args:
        begin: called in the child before anything else.
    """
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), begin)


def random_documents(count: int, length: int = LENGTH) -> list[list[int]]:
    """Return `count` documents of `length` random token ids."""
    generator = random.Random(0)
    return [[generator.randrange(VOCABULARY) for _ in range(length)] for _ in range(count)]


def make_step(
    size: str = "small", *, dtype: str = "auto", compiled: bool = False, length: int = LENGTH
) -> TrainingStep:
    """Return a training step with new weights on the device of this machine."""
    device = choose_device("auto")
    keep_freed_memory()
    chosen = choose_dtype(dtype, device)
    if device.type == "cpu" and chosen == torch.float32:
        multiply_fp32_by_onednn()
    model = LanguageModel(MODEL_SIZES[size], VOCABULARY).to(device)
    step = TrainingStep(model, dtype=chosen, max_seq_length=length)
    if compiled:
        step.compile()
    return step


def time_steps(step: TrainingStep, documents: list[list[int]]) -> float:
    """Return the median milliseconds per step."""
    times = []
    for ids in documents:
        since = time.perf_counter()
        step(ids, 1e-4)
        times.append(1000 * (time.perf_counter() - since))
    return statistics.median(times)


def mean_step(step: TrainingStep, documents: list[list[int]]) -> float:
    """Return the mean milliseconds per step, after three steps that warm the caches."""
    for ids in documents[:3]:
        step(ids, 1e-4)
    since = time.perf_counter()
    for ids in documents:
        step(ids, 1e-4)
    return 1000 * (time.perf_counter() - since) / len(documents)


def write_corpus(path: Path, documents: int) -> None:
    """Write a `.jsonl.zst` of documents longer than `LENGTH` tokens, made of random words."""
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefghijklmnop", k=generator.randint(2, 9))) for _ in range(20_000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    with zstandard.open(path, "wt") as file:
        for _ in range(documents):
            file.write(json.dumps({"text": " ".join(generator.choices(words, weights, k=400))}) + "\n")


def run_command(folder: Path, *flags: str, environment: dict[str, str] | None = None) -> str:
    """Run our whole command in a child process and return what it printed."""
    done = subprocess.run(
        [sys.executable, str(PROJECT / "train_slimpajama.py"), *flags],
        cwd=folder,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def seconds_of_run(folder: Path, first: int) -> list[float]:
    """Return the seconds of each step of the run in `folder` from step `first`, everything included."""
    with sqlite3.connect(folder / "training_viz" / "run.db") as store:
        rows = store.execute("SELECT seconds FROM steps WHERE step >= ? ORDER BY step", (first,)).fetchall()
    return [row[0] for row in rows]


def time_transformers(size: str, *, steps: int, first: int, bf16: bool, compiled: bool) -> float:
    """Return the mean milliseconds per step of the `Trainer` of transformers from step `first`.

    It uses its own optimizer, data loader and logging, and reports to no service.
    """
    import transformers

    from benchmarks.baselines import Documents, transformers_model, transformers_trainer

    ends: list[float] = []

    class Watch(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: object, state: object, control: object, **rest: object) -> None:
            ends.append(time.perf_counter())

    transformers_trainer(
        transformers_model(MODEL_SIZES[size], VOCABULARY, 0),
        Documents(random_documents(16), steps),
        steps=steps,
        rate=3e-4,
        warmup=0,
        seed=0,
        callbacks=[Watch()],
        bf16=bf16,
        compiled=compiled,
    ).train()
    return 1000 * (ends[-1] - ends[first]) / (steps - 1 - first)
