"""Fixtures for the tests of `viz`: rows as a run creates them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from viz.record.schema import rows_of
from viz.record.writer import StoreWriter

Metrics = Callable[..., dict[str, Any]]


@pytest.fixture
def metrics() -> Metrics:
    """`metrics(step, **changed)`: what a trainer passes to `update` for one document of 256 tokens."""
    random = np.random.default_rng(0)
    frequencies = 1 / np.arange(1, 8193)
    frequencies /= frequencies.sum()

    def make(step: int, **changed: Any) -> dict[str, Any]:
        losses = random.gamma(1.0, 3.0, 255).astype(np.float32)
        return {
            "step": step,
            "loss": float(losses.mean()),
            "accuracy": 0.25,
            "throughput": 5123.4567,
            "learning_rate": 1e-6 * max(step, 1),
            "gradient_norm": float(random.lognormal()),
            "tokens": 255,
            "bytes": 1_234_567,
            "seconds": 0.05,
            "seconds_waited": 0.001,
            "unigram_entropy": 6.25,
            "source": ("python-code", "python-docs")[step % 2],
            "shard": "hf://datasets/cerebras/SlimPajama-627B@2d0accd/train/chunk1/example_train_0.jsonl.zst",
            "row": step,
            "text_hash": random.bytes(32),
            "document_bytes": 4321,
            "token_ids": random.choice(8192, 256, p=frequencies).tolist(),
            "token_losses": losses,
            "token_ranks": np.minimum(random.lognormal(2, 2.5, 255), 8191).astype(np.int32),
        } | changed

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
