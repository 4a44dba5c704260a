"""What the tests of `viz` share: rows and stores as a run creates them, and processes that run Python."""

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import PROJECT
from viz.record.schema import rows_of
from viz.record.writer import StoreWriter

Metrics = Callable[..., dict[str, Any]]


def add_calls(writer: StoreWriter, calls: Iterable[dict[str, Any]]) -> None:
    """Record what a trainer passes to `update`, and wait until it is committed."""
    for given in calls:
        writer.add_rows(rows_of(given))
    writer.flush()


def write_store(folder: Path, calls: Iterable[dict[str, Any]] = (), *, resume: bool = False, **about: Any) -> Path:
    """Write the store of a run, described by `about`, or continue it; close it, and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = StoreWriter(folder / "run.db", about, resume=resume)
    add_calls(writer, calls)
    writer.close()
    return folder


def execute(path: Path, *statements: str) -> list[tuple[Any, ...]]:
    """Execute statements in a database, commit, and return the rows of the last one."""
    rows: list[tuple[Any, ...]] = []
    with closing(sqlite3.connect(path, timeout=60)) as database, database:
        for statement in statements:
            rows = database.execute(statement).fetchall()
    return rows


def run_python(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python in the project's folder, and wait. An exit code other than 0 is an error unless `check` is False."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, **{"check": True, **options})


def start_python(*arguments: object, **options: Any) -> "subprocess.Popen[str]":
    """Start Python in the project's folder, with pipes for its input and output."""
    command, pipe = [sys.executable, *map(str, arguments)], subprocess.PIPE
    return subprocess.Popen(command, cwd=PROJECT, stdin=pipe, stdout=pipe, text=True, **options)


@pytest.fixture
def metrics() -> Metrics:
    """`metrics(step, **changed)`: what a trainer passes to `update` for one document of 256 tokens."""
    random = np.random.default_rng(0)
    frequencies = 1 / np.arange(1, 8193)
    frequencies /= frequencies.sum()

    def make(step: int, **changed: Any) -> dict[str, Any]:
        losses = random.gamma(1.0, 3.0, 255).astype(np.float32)
        made = {
            "step": step, "loss": float(losses.mean()), "accuracy": 0.25, "throughput": 5123.4567,
            "learning_rate": 1e-6 * max(step, 1), "gradient_norm": float(random.lognormal()), "tokens": 255,
            "bytes": 1_234_567, "seconds": 0.05, "seconds_waited": 0.001, "unigram_entropy": 6.25,
            "source": ("python-code", "python-docs")[step % 2], "row": step, "text_hash": random.bytes(32),
            "shard": "hf://datasets/cerebras/SlimPajama-627B@2d0accd/train/chunk1/example_train_0.jsonl.zst",
            "document_bytes": 4321, "token_ids": random.choice(8192, 256, p=frequencies).tolist(),
            "token_losses": losses, "token_ranks": np.minimum(random.lognormal(2, 2.5, 255), 8191).astype(np.int32),
        }  # fmt: skip
        return made | changed

    return make


@pytest.fixture
def filled(tmp_path: Path, metrics: Metrics) -> Path:
    """A folder with the closed store of a run of 20 documents, with a generation at every tenth."""
    writer = StoreWriter(tmp_path / "run.db", {"run_id": "r1", "source": "python-library", "model": "small 13.8 M"})
    for step in range(20):
        text = ("input", "output") if step % 10 == 0 else ("", "")
        writer.add_rows(rows_of(metrics(step), *text))
    writer.close()
    return tmp_path
