"""The compiled step: the same losses as the eager one, and exact across a resume in another process."""

from pathlib import Path

import pytest

from tests.conftest import Run
from tests.runs.conftest import SMALL, STEPS, table
from tests.runs.test_resume import equal_runs

pytestmark = pytest.mark.full  # compiling takes a minute


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


def test_without_a_compiler_it_says_so_and_goes_on(tmp_path: Path, corpus: Path, run_command: Run) -> None:
    done = run_command(
        *SMALL, "--dataset", corpus, "--steps", 2, "--compile", cwd=tmp_path, environment={"PATH": str(tmp_path)}
    )
    assert done.stdout.count("there is no C++ compiler, so the step runs without it") == 1
    assert "compiled" not in next(line for line in done.stdout.splitlines() if line.startswith("Model:"))
