"""Small runs of the command: two layers, short documents, a vocabulary of 400 pieces."""

import functools
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import PROJECT, command_environment
from tests.warm_drawing import Sketching
from trainer.assemble import Builders
from trainer.base.device import multiply_fp32_by_onednn
from trainer.cli import main
from trainer.learning.flops import measure_flops
from viz.charts.render_process import DrawingOptions
from viz.visualizer import TrainingVisualizer

Train = Callable[..., int]
Capture = pytest.CaptureFixture[str]

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
"""The usual parts, but what a run measures of the machine is measured once per process, and the drawing process is a
fork of a warm one that draws blank images."""
if sys.platform == "linux":
    QUICK = replace(QUICK, visualizer=functools.partial(TrainingVisualizer, drawing=DrawingOptions(start=Sketching)))


@pytest.fixture
def train(corpus: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Train:
    """Run the command in this process: a small model on the corpus, in this test's folder. Returns its exit code."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, small: bool = True, builders: Builders = QUICK) -> int:
        words = [str(argument) for argument in arguments]
        if small and "--resume" not in words:
            words = [*SMALL, *([] if "--dataset" in words else ["--dataset", str(corpus)]), *words]
        return main(words, builders)

    return run


def start(
    words: Sequence[object], folder: Path, code: str | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start the command, or Python code that runs it, in `folder` and in its own session."""
    program = ["-c", code] if code else [str(PROJECT / "train_slimpajama.py")]
    return subprocess.Popen(
        [sys.executable, *program, *map(str, words)],
        cwd=folder,
        env=command_environment() | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_code(code: str, words: Sequence[object], folder: Path) -> tuple[int, str, str]:
    """Run Python code with arguments in its own process. Returns its exit code, standard output and standard error."""
    process = start(words, folder, code)
    output, error = process.communicate(timeout=900)
    return process.returncode, output, error


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str], seconds: float = 300) -> None:
    """Wait for something that a running process does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.01)


def table(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    """The rows of a query on the store in `folder`."""
    with sqlite3.connect(f"file:{folder / 'run.db'}?mode=ro", uri=True) as database:
        rows = database.execute(sql).fetchall()
    database.close()
    return rows


def count_steps(folder: Path) -> int:
    """Rows of `steps` in the store in `folder`, which need not exist yet."""
    try:
        return int(table(folder, "SELECT count(*) FROM steps")[0][0])
    except sqlite3.Error:
        return 0


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line on standard error since the last call."""
    error = capsys.readouterr().err
    assert error.startswith("train_slimpajama.py: ") and error.count("\n") == 1, error
    return error


STEPS = "SELECT step, loss, accuracy, learning_rate, gradient_norm, tokens, bytes FROM steps ORDER BY step"
DOCUMENTS = "SELECT * FROM documents ORDER BY step"
