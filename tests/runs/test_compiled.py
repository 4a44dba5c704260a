"""The compiled step: the same losses as the eager one, exact over a resume in another process, chosen where it pays."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from torch._inductor.exc import CppCompileError

from tests.conftest import Run
from tests.runs.conftest import SMALL, STEPS, Train, table
from tests.runs.test_resume import equal_runs
from trainer.objective import Judgement
from trainer.step import TrainingStep

UNDECIDED = [word for word in SMALL if word != "--no-compile"]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[TrainingStep]:
    """The steps that are asked to compile, which then run as they are; every run is long enough to do so."""
    asked: list[TrainingStep] = []
    monkeypatch.setattr(TrainingStep, "compile", lambda step: asked.append(step))
    monkeypatch.setattr("trainer.parts.compiling_pays", lambda steps, seconds, layers, graphs: True)
    return asked


def test_a_run_that_is_long_enough_is_compiled_and_stays_so(
    train: Train, compiled: list[TrainingStep], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(*UNDECIDED, "--dataset", corpus, "--steps", 4, small=False) == 0
    assert len(compiled) == 1
    assert json.loads((tmp_path / "training_viz" / "run.json").read_bytes())["config"]["compile"] is True
    monkeypatch.setattr("trainer.parts.compiling_pays", lambda steps, seconds, layers, graphs: False)
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


def test_a_graph_that_can_not_be_made_ends_the_run_and_nothing_is_lost(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def compile_badly(step: TrainingStep) -> None:
        works, count = step._forward, itertools.count()

        def forward(*given: torch.Tensor) -> Judgement:
            if next(count) == 5:
                raise CppCompileError(["g++", "main.cpp"], "No space left on device")
            return works(*given)

        step._forward = forward

    monkeypatch.setattr(TrainingStep, "compile", compile_badly)
    assert train("--steps", 9, "--compile") == 5
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "can't be compiled" in error and "--resume --no-compile" in error
    assert (tmp_path / "checkpoints" / "checkpoint_step_5.bin").exists()
    assert train("--resume", "--no-compile") == 0
    assert train("--steps", 9, "--out", "whole") == 0
    equal_runs(tmp_path / "whole", tmp_path, 9)


@pytest.mark.full  # compiling takes a minute
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
    assert done.stdout.count("there is no C++ compiler, so the step runs without it") == 1
    assert "compiled" not in next(line for line in done.stdout.splitlines() if line.startswith("Model:"))
