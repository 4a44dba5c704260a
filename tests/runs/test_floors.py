"""The floors of the house hold, and the check that says so can fail."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT

LINT = Path(sys.executable).with_name("lint-imports")


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LINT, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False)


def test_the_floors_hold() -> None:
    done = lint(PROJECT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("trainer/schedule.py", "import trainer.trainer"),  # up
        ("trainer/step.py", "import trainer.samples"),  # sideways
        ("trainer/trainer.py", "import viz.store"),  # out
        ("viz/charts.py", "import torch"),
        ("trainer/utils.py", ""),  # a room without a floor
    ],
)
def test_a_step_off_the_floor_is_seen(room: str, line: str, tmp_path: Path) -> None:
    for name in ("trainer", "viz"):
        shutil.copytree(PROJECT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    with (tmp_path / room).open("a") as file:
        file.write(f"\n{line}\n")
    assert lint(tmp_path).returncode == 1
