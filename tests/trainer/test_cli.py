import shlex
import sys
from pathlib import Path

import pytest

from trainer.arguments import parse_arguments
from trainer.cli import folders_of, resume_command, start_command
from trainer.run.folders import Folders, new_run


@pytest.mark.parametrize(
    ("typed", "printed"),
    [
        ("", "python train_slimpajama.py"),
        ("--out .", "python train_slimpajama.py"),
        ("--out 'a b'", "python train_slimpajama.py --out 'a b'"),
        ("--viz-dir v", "python train_slimpajama.py --viz-dir v"),
        ("--checkpoint-dir '$(id)'", "python train_slimpajama.py --checkpoint-dir '$(id)'"),
        ("--steps 5 --viz-dir v --checkpoint-dir c", "python train_slimpajama.py --viz-dir v --checkpoint-dir c"),
    ],
)
def test_the_printed_command_selects_the_same_folders(typed: str, printed: str) -> None:
    arguments = parse_arguments(shlex.split(typed))
    assert start_command(arguments) == printed
    assert folders_of(parse_arguments(shlex.split(printed)[2:])) == folders_of(arguments)


def test_an_installed_program_prints_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/local/bin/train-slimpajama", "--out", "a"])
    assert start_command(parse_arguments(["--out", "a"])) == "train-slimpajama --out a"


def test_the_resume_command_names_the_run(tmp_path: Path) -> None:
    for typed, folders, ending in (
        ([], Folders(tmp_path / "training_viz", tmp_path / "checkpoints"), "--resume"),
        (["--test"], Folders(tmp_path / "training_viz/test", tmp_path / "checkpoints/test"), "--test --resume"),
        ([], Folders(tmp_path / "v", tmp_path / "c"), f"--checkpoint-dir {tmp_path / 'c'} --resume"),
    ):
        run = new_run(folders, test=False)
        arguments = parse_arguments(["--out", str(tmp_path), *typed])
        assert resume_command(arguments, run).endswith(ending)
        run.release()
    run = new_run(Folders(tmp_path / "v", tmp_path / "c"), test=False)
    arguments = parse_arguments(["--out", str(tmp_path), "--resume", run.run_id])
    assert resume_command(arguments, run).endswith(f"--out {tmp_path} --resume {run.run_id}")
    run.release()
