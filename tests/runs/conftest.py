"""Runs of the whole command, small: two layers, short documents, a vocabulary of 400."""

import functools
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.warm_drawing import forking
from trainer.assemble import Builders
from trainer.base.device import multiply_fp32_by_onednn
from trainer.cli import main
from trainer.learning.flops import measure_flops

Train = Callable[..., int]

SMALL = (
    "--model-size tiny --max-seq-length 48 --vocab-size 400 --dtype fp32 --device cpu "
    "--warmup-steps 10 --viz-interval 1000 --display-samples 1000 --no-compile"
).split()


@functools.cache
def _tried_precision() -> str:
    multiply_fp32_by_onednn()
    return str(torch.backends.mkldnn.matmul.fp32_precision)  # type: ignore[attr-defined]


def _use_tried_precision() -> None:
    torch.backends.mkldnn.matmul.fp32_precision = _tried_precision()  # type: ignore[attr-defined]


QUICK = Builders(measure_flops=functools.cache(measure_flops), use_onednn_for_fp32=_use_tried_precision)
"""The usual parts, but what each run measures of the machine is measured once per process."""


@pytest.fixture
def train(corpus: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Train:
    """Run the command in this process: a small model on the corpus, in this test's folder. Returns its exit code."""
    if sys.platform == "linux":
        monkeypatch.setattr("viz.charts.render_process.subprocess", forking)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, small: bool = True, builders: Builders = QUICK) -> int:
        words = [str(argument) for argument in arguments]
        if small and "--resume" not in words:
            words = [*SMALL, *([] if "--dataset" in words else ["--dataset", str(corpus)]), *words]
        return main(words, builders)

    return run


def table(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    """The rows of a query on the store in `folder`."""
    with sqlite3.connect(f"file:{folder / 'run.db'}?mode=ro", uri=True) as database:
        rows = database.execute(sql).fetchall()
    database.close()
    return rows


STEPS = "SELECT step, loss, accuracy, learning_rate, gradient_norm, tokens, bytes FROM steps ORDER BY step"
DOCUMENTS = "SELECT * FROM documents ORDER BY step"
