"""The compiled step: the same losses as the eager one, exact across a resume in another process, used where it pays."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from tests.conftest import PROJECT, Run
from tests.runs.conftest import QUICK, SMALL, STEPS, Capture, Train, table
from tests.runs.test_resume import equal_runs
from trainer.base.device import choose_device
from trainer.learning.step import TrainingStep

UNDECIDED = [word for word in SMALL if word != "--no-compile"]


class Uncompiled(TrainingStep):
    """Counts the requests to compile it, and stays as it is."""

    requests: ClassVar[int]

    def compile(self) -> None:
        Uncompiled.requests += 1


PAYS = replace(QUICK, training_step=Uncompiled, compiling_pays=lambda steps, seconds, kind: True)


@pytest.fixture(autouse=True)
def no_requests() -> None:
    Uncompiled.requests = 0


def test_a_long_run_is_compiled_and_stays_compiled(train: Train, corpus: Path, tmp_path: Path) -> None:
    assert train(*UNDECIDED, "--dataset", corpus, "--steps", 4, small=False, builders=PAYS) == 0
    assert Uncompiled.requests == 1
    assert json.loads((tmp_path / "training_viz" / "run.json").read_bytes())["config"]["compile"] is True
    assert train("--resume", "--steps", 6, builders=replace(PAYS, compiling_pays=QUICK.compiling_pays)) == 0
    assert Uncompiled.requests == 2


def test_a_flag_decides(train: Train) -> None:
    assert train("--steps", 2, builders=PAYS) == 0  # with --no-compile
    assert not Uncompiled.requests


@pytest.mark.parametrize(
    ("flags", "why"), [([], "A run of 2 documents would be faster compiled"), (["--compile"], "--compile")]
)
def test_without_a_compiler_the_run_reports_it_and_continues(
    train: Train, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, flags: list[str], why: str
) -> None:
    monkeypatch.setenv("PATH", "")
    assert train(*UNDECIDED, *flags, "--dataset", corpus, "--steps", 2, small=False, builders=PAYS) == 0
    said = capsys.readouterr().out
    assert said.count(f"{why}: there is no C++ compiler (g++)") == 1 and "compiled" not in said.split("Model:")[1]
    assert not Uncompiled.requests


def test_a_run_continues_eagerly_when_the_compiler_raises(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """At the first call of the compiled function. Real compilers that fail, early and late, need 15 seconds each."""
    assert train("--steps", 3, "--out", "eager") == 0
    asked = []

    def fail(*given: object) -> None:
        asked.append(given)
        raise RuntimeError("no space left\nand much more")

    monkeypatch.setattr(torch, "compile", lambda function, **options: fail)
    assert train("--steps", 3, "--compile", "--out", "tried") == 0
    said = "--compile: the compiler failed (RuntimeError: no space left), so the step runs uncompiled\n"
    assert asked and capsys.readouterr().out.count(said) == 1
    assert json.loads((tmp_path / "tried/training_viz/run.json").read_bytes())["config"]["compile"] is False
    equal_runs(tmp_path / "eager", tmp_path / "tried", 3)


FAILING = """#!/bin/sh
printf x >> "$0.calls"
[ $(wc -c < "$0.calls") -gt {works} ] && exit 4
exec g++ "$@"
"""


@pytest.mark.full
@pytest.mark.parametrize("works", [0, 2, 4])
def test_a_run_continues_eagerly_when_the_compiler_fails(
    train: Train, tmp_path: Path, corpus: Path, run_command: Run, works: int
) -> None:
    """At the first file that it has to compile, or at a later one (a backward pass)."""
    compiler = tmp_path / "failing"
    compiler.write_text(FAILING.format(works=works))
    compiler.chmod(0o755)
    environment = {"CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    flags = [*SMALL, "--dataset", corpus, "--steps", 3]
    done = run_command(*flags, "--compile", "--out", "tried", cwd=tmp_path, environment=environment)
    assert done.stdout.count("--compile: the compiler failed (") == 1 and done.stderr == ""
    assert json.loads((tmp_path / "tried/training_viz/run.json").read_bytes())["config"]["compile"] is False
    assert train("--steps", 3, "--out", "eager") == 0
    equal_runs(tmp_path / "eager", tmp_path / "tried", 3)


@pytest.mark.full  # compiling takes half a minute
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_compiled_equals_eager_and_resumes_exactly(tmp_path: Path, corpus: Path, run_command: Run, dtype: str) -> None:
    """Also with another torch cache, which contains code for longer documents."""

    def run(*words: object, cache: str, length: int = 200) -> str:
        flags = [*SMALL, "--dtype", dtype, "--dataset", corpus, "--max-seq-length", length]
        environment = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / cache)}
        resumed = "--resume" in words
        return run_command(*([] if resumed else flags), *words, cwd=tmp_path, environment=environment).stdout

    run("--steps", 20, "--out", "eager", cache="one")
    assert "compiled" in run("--steps", 20, "--out", "whole", "--compile", cache="one")
    run("--steps", 9, "--out", "parts", "--compile", cache="one")
    run("--steps", 2, "--out", "longer", "--compile", cache="other", length=600)
    assert "compiled" in run("--resume", "--steps", 20, "--out", "parts", cache="other")
    equal_runs(tmp_path / "whole", tmp_path / "parts", 20)
    losses = [[row[1] for row in table(tmp_path / name / "training_viz", STEPS)] for name in ("eager", "whole")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5 if dtype == "fp32" else 1e-2)


GRAPHS = """
import random
from benchmarks.contenders import make_step
from torch._dynamo.utils import counters
step = make_step("tiny", length={length})
step.compile()
made = counters["stats"]["unique_graphs"]
for _ in range(12):
    step([random.randrange(8192) for _ in range(random.randint(2, {length}))], 1e-4)
    step.averaged().generate([1, 2, 3], 6)
    step.model.generate([1, 2, 3], 6)
print(made, counters["stats"]["unique_graphs"] - made)
"""


@pytest.mark.full
@pytest.mark.parametrize("length", [65, 200, 1025])
def test_one_graph_serves_all_layers_and_lengths(length: int) -> None:
    """Also where a length equals the width, 64. Beyond 512 tokens, attention on a CPU uses another kernel."""
    command = [sys.executable, "-c", GRAPHS.format(length=length)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    graphs = 3 if length > 513 and choose_device("auto").type == "cpu" else 2
    assert done.stdout.split() == [str(graphs), "0"]
