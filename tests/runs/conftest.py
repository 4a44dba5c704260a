"""Runs of the whole command, small: two layers, short documents, a vocabulary of 400."""

import functools
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import train_slimpajama
from tests.warm_drawing import forking
from trainer.base.device import multiply_fp32_by_onednn
from trainer.learning.flops import measure_flops

Train = Callable[..., int]

SMALL = (
    "--model-size tiny --max-seq-length 48 --vocab-size 400 --dtype fp32 --device cpu "
    "--warmup-steps 10 --viz-interval 1000 --display-samples 1000 --no-compile"
).split()


measure_flops_once = functools.cache(measure_flops)


@functools.cache
def _tried_precision() -> str:
    multiply_fp32_by_onednn()
    return str(torch.backends.mkldnn.matmul.fp32_precision)  # type: ignore[attr-defined]


def multiply_as_was_tried_once() -> None:
    torch.backends.mkldnn.matmul.fp32_precision = _tried_precision()  # type: ignore[attr-defined]


def start_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What each run finds out anew as it starts, and what is the same for all runs of this process, is done once."""
    monkeypatch.setattr("trainer.assemble.measure_flops", measure_flops_once)
    monkeypatch.setattr("trainer.assemble.multiply_fp32_by_onednn", multiply_as_was_tried_once)
    if sys.platform == "linux":
        monkeypatch.setattr("viz.charts.render_process.subprocess", forking)


@pytest.fixture
def train(corpus: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Train:
    """Run the command in this process: a small model on the corpus, in a folder of this test. Returns its exit code."""
    start_once(monkeypatch)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, small: bool = True) -> int:
        words = [str(argument) for argument in arguments]
        if small and "--resume" not in words:
            words = [*SMALL, *([] if "--dataset" in words else ["--dataset", str(corpus)]), *words]
        return train_slimpajama.main(words)

    return run


def table(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    """The rows of a query on the store in `folder`."""
    with sqlite3.connect(f"file:{folder / 'run.db'}?mode=ro", uri=True) as database:
        rows = database.execute(sql).fetchall()
    database.close()
    return rows


STEPS = "SELECT step, loss, accuracy, learning_rate, gradient_norm, tokens, bytes FROM steps ORDER BY step"
DOCUMENTS = "SELECT * FROM documents ORDER BY step"
