"""Runs of the whole command, small: two layers, short documents, a vocabulary of 400."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import train_slimpajama

Train = Callable[..., int]

SMALL = (
    "--model-size tiny --max-seq-length 48 --vocab-size 400 --dtype fp32 --device cpu "
    "--warmup-steps 10 --viz-interval 1000 --display-samples 1000 --no-compile"
).split()


@pytest.fixture
def train(corpus: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Train:
    """Run the command in this process: a small model on the corpus, in a folder of this test. Returns its exit code."""
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
