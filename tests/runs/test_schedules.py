"""Schedules in runs of the command: the recorded rates, and what a resume reports if the end of the run moved."""

import json
from pathlib import Path

import pytest

from tests.runs.conftest import Capture, Train, table
from tests.runs.test_resume import equal_runs


def recorded(folder: Path) -> list[float]:
    """Column `learning_rate` of `metrics_history.json`, six significant digits."""
    rates: list[float] = json.loads((folder / "training_viz" / "metrics_history.json").read_text())["learning_rate"]
    return rates


def resumes(folder: Path) -> list[str]:
    return [detail for (detail,) in table(folder / "training_viz", "SELECT detail FROM events WHERE kind = 'resume'")]


def close(*expected: float) -> object:
    return pytest.approx(expected, rel=1e-5)


WARM_UP = [1e-4, 1e-4, 2e-4, 3e-4, 4e-4, 5e-4, 6e-4, 7e-4, 8e-4, 9e-4]


def test_the_requested_schedule_is_recorded(train: Train, tmp_path: Path) -> None:
    assert train("--steps", 20, "--schedule", "linear", "--min-learning-rate", 5e-4, "--cooldown", 2) == 0
    falling = [1e-3, 9.5e-4, 9e-4, 8.5e-4, 8e-4, 7.5e-4, 7e-4, 6.5e-4, 6e-4, 5.5e-4 / 2]
    assert recorded(tmp_path) == close(*WARM_UP, *falling)


def test_a_resumed_cosine_equals_one_that_was_not_stopped(train: Train, tmp_path: Path) -> None:
    cosine = ("--steps", 24, "--schedule", "cosine", "--min-learning-rate", 1e-4, "--cooldown", 6)
    assert train(*cosine, "--out", "whole") == 0
    assert train(*cosine, "--out", "parts", "--checkpoint-interval", 15) == 0
    cut = tmp_path / "parts" / "checkpoints" / "checkpoint_step_15.bin"
    assert train("--resume", cut, "--out", "parts") == 0
    equal_runs(tmp_path / "whole", tmp_path / "parts", 24)
    assert resumes(tmp_path / "parts") == ["after 15 documents"]


def test_another_end_of_a_cosine_is_reported(train: Train, tmp_path: Path, capsys: Capture) -> None:
    """Control of the test above: a run to the new end would have trained differently up to here."""
    assert train("--steps", 24, "--schedule", "cosine", "--out", "whole") == 0
    assert train("--steps", 20, "--schedule", "cosine", "--out", "parts", "--checkpoint-interval", 15) == 0
    capsys.readouterr()
    cut = tmp_path / "parts" / "checkpoints" / "checkpoint_step_15.bin"
    assert train("--resume", cut, "--out", "parts", "--steps", 24) == 0
    with pytest.raises(AssertionError):
        equal_runs(tmp_path / "whole", tmp_path / "parts", 24)
    whole, parts = recorded(tmp_path / "whole"), recorded(tmp_path / "parts")
    assert whole[:11] == parts[:11] and whole[11:15] != parts[11:15] and whole[15:] == parts[15:]
    (detail,) = resumes(tmp_path / "parts")
    assert detail == (
        "after 15 documents; num_steps 20 → 24, learning rate of the next step 5.00e-04 → 7.17e-04; not bit-identical"
    )
    assert detail in capsys.readouterr().out


def test_a_cooldown_that_has_not_begun_moves_with_the_end(train: Train, tmp_path: Path) -> None:
    """A finished cooldown goes up again and down at the new end, which is reported."""
    assert train("--steps", 24, "--cooldown", 4, "--out", "whole") == 0
    assert train("--steps", 16, "--cooldown", 4, "--out", "parts", "--checkpoint-interval", 13) == 0
    cut = tmp_path / "parts" / "checkpoints" / "checkpoint_step_13.bin"
    assert train("--resume", cut, "--out", "parts", "--steps", 24) == 0
    equal_runs(tmp_path / "whole", tmp_path / "parts", 24)
    assert resumes(tmp_path / "parts") == ["after 13 documents; num_steps 16 → 24"]

    assert train("--resume", "--out", "parts", "--steps", 30) == 0
    constant, down = [1e-3] * 10, [1e-3, 7.5e-4, 5e-4, 2.5e-4]
    assert recorded(tmp_path / "parts") == close(*WARM_UP, *constant, *down, 1e-3, 1e-3, *down)
    assert resumes(tmp_path / "parts")[1] == (
        "after 24 documents; num_steps 24 → 30, learning rate of the next step 2.50e-04 → 1.00e-03; not bit-identical"
    )


def test_a_resume_can_add_a_cooldown(train: Train, tmp_path: Path) -> None:
    assert train("--steps", 14) == 0
    assert train("--resume", "--steps", 18, "--cooldown", 4) == 0
    assert recorded(tmp_path) == close(*WARM_UP, *[1e-3] * 5, 7.5e-4, 5e-4, 2.5e-4)
    assert resumes(tmp_path) == ["after 14 documents; num_steps 14 → 18, cooldown_steps 0 → 4; not bit-identical"]


def test_mistakes_are_one_line_also_in_a_resumed_run(train: Train, capsys: Capture) -> None:
    mistakes = {
        "--cooldown 9": ["--cooldown 9", "--steps 8"],
        "--min-learning-rate 1e-4": ["--min-learning-rate 0.0001", "--schedule cosine or linear"],
        "--schedule cosine --min-learning-rate 0.1": ["--min-learning-rate 0.1", "--learning-rate 0.001"],
    }
    assert train("--steps", 3) == 0
    capsys.readouterr()
    for flags, parts in mistakes.items():
        for words in (["--resume", "--steps", 8], ["--steps", 8]):
            assert train(*words, *flags.split()) == 2
            error = capsys.readouterr().err
            assert error.count("\n") == 1 and all(part in error for part in parts), error
