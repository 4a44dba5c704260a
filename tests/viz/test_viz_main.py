import subprocess
import sys
from pathlib import Path

import pytest

from viz.__main__ import main

ROOT = Path(__file__).parents[2]


def test_pictures_and_json_are_made_again_from_the_store_alone(filled: Path) -> None:
    command = [sys.executable, "-m", "viz"]
    drawn = subprocess.run([*command, "chart", str(filled)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert drawn.stdout.strip() == str(filled / "training_step_000020.png")
    assert (filled / "training_latest.png").exists()
    assert main(["export", str(filled)]) == 0
    assert (filled / "metrics_history.json").exists()


def test_a_chart_to_a_file_of_ones_own(filled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chart", str(filled), "-o", str(tmp_path / "mine.png")]) == 0
    assert (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG")
    assert not (filled / "training_latest.png").exists()
    assert capsys.readouterr().out.strip() == str(tmp_path / "mine.png")


def test_a_folder_without_a_run_is_exit_2_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chart", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no run store there" in line
