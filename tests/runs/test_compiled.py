"""The compiled step: the same losses as the eager one, exact over a resume in another process, chosen where it pays."""

import json
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.runs.conftest import SMALL, STEPS, Train, table
from tests.runs.test_resume import equal_runs
from trainer.step import TrainingStep

UNDECIDED = [word for word in SMALL if word != "--no-compile"]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[TrainingStep]:
    """The steps that are asked to compile, which then run as they are; every run is long enough to do so."""
    asked: list[TrainingStep] = []
    monkeypatch.setattr(TrainingStep, "compile", lambda step: asked.append(step))
    monkeypatch.setattr("trainer.parts.compiling_pays", lambda steps, seconds: True)
    return asked


def test_a_run_that_is_long_enough_is_compiled_and_stays_so(
    train: Train, compiled: list[TrainingStep], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(*UNDECIDED, "--dataset", corpus, "--steps", 4, small=False) == 0
    assert len(compiled) == 1
    assert json.loads((tmp_path / "training_viz" / "run.json").read_bytes())["config"]["compile"] is True
    monkeypatch.setattr("trainer.parts.compiling_pays", lambda steps, seconds: False)
    assert train("--resume", "--steps", 6) == 0
    assert len(compiled) == 2


def test_what_is_typed_decides(train: Train, compiled: list[TrainingStep]) -> None:
    assert train("--steps", 2) == 0  # with --no-compile
    assert not compiled


def test_a_long_run_says_what_it_lacks_to_be_compiled(
    train: Train,
    compiled: list[TrainingStep],
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", "")
    assert train(*UNDECIDED, "--dataset", corpus, "--steps", 2, small=False) == 0
    assert "2 documents would be faster compiled: there is no C++ compiler" in capsys.readouterr().out
    assert not compiled


def test_a_compiler_that_fails_is_told_and_the_run_goes_on_without(
    tmp_path: Path, corpus: Path, run_command: Run
) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text('#!/bin/sh\nfor word; do [ "$word" = --version ] && exec echo "g++ 12"; done\nexit 4\n')
    compiler.chmod(0o755)
    environment = {"CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    flags = [*SMALL, "--dataset", corpus, "--steps", 3]
    done = run_command(*flags, "--compile", "--out", "tried", cwd=tmp_path, environment=environment)
    assert done.stdout.count("--compile: the compiler fails (") == 1 and done.stderr == ""
    assert json.loads((tmp_path / "tried/training_viz/run.json").read_bytes())["config"]["compile"] is False
    run_command(*flags, "--out", "eager", cwd=tmp_path)
    equal_runs(tmp_path / "eager", tmp_path / "tried", 3)


@pytest.mark.full  # compiling takes half a minute
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_compiled_equals_eager_and_resumes_exactly(tmp_path: Path, corpus: Path, run_command: Run, dtype: str) -> None:
    flags = [*SMALL, "--dtype", dtype, "--dataset", corpus]
    run_command(*flags, "--steps", 20, "--out", "eager", cwd=tmp_path)
    whole = run_command(*flags, "--steps", 20, "--out", "whole", "--compile", cwd=tmp_path)
    assert "compiled" in whole.stdout
    run_command(*flags, "--steps", 9, "--out", "parts", "--compile", cwd=tmp_path)
    resumed = run_command("--resume", "--steps", 20, "--out", "parts", cwd=tmp_path)
    assert "compiled" in resumed.stdout
    equal_runs(tmp_path / "whole", tmp_path / "parts", 20)
    losses = [[row[1] for row in table(tmp_path / name / "training_viz", STEPS)] for name in ("eager", "whole")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5 if dtype == "fp32" else 1e-2)


@pytest.mark.full
def test_without_a_compiler_it_says_so_and_goes_on(tmp_path: Path, corpus: Path, run_command: Run) -> None:
    done = run_command(
        *SMALL, "--dataset", corpus, "--steps", 2, "--compile", cwd=tmp_path, environment={"PATH": str(tmp_path)}
    )
    assert done.stdout.count("there is no C++ compiler (g++), so the step runs without it") == 1
    assert "compiled" not in next(line for line in done.stdout.splitlines() if line.startswith("Model:"))
