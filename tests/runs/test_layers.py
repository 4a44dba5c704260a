"""The layers of the packages hold, and their check can fail."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT

LINT = Path(sys.executable).with_name("lint-imports")


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LINT, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False)


def test_the_layers_hold() -> None:
    done = lint(PROJECT)
    assert done.returncode == 0, done.stdout


@pytest.mark.full
@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("trainer/learning/schedule.py", "import trainer.trainer"),  # up
        ("trainer/learning/step.py", "import trainer.run.folders"),  # up, from a package
        ("trainer/trainer.py", "import viz.record.writer"),  # out
        ("viz/charts/figure.py", "import torch"),
        ("trainer/utils.py", ""),  # a module without a layer
    ],
)
def test_an_import_across_layers_is_found(module: str, line: str, tmp_path: Path) -> None:
    for name in ("common", "trainer", "viz"):
        shutil.copytree(PROJECT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    with (tmp_path / module).open("a") as file:
        file.write(f"\n{line}\n")
    assert lint(tmp_path).returncode == 1
