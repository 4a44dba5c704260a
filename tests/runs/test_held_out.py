"""A run that is measured on held-out documents: unasked, when it stops and goes on, and where there are none."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import command_environment, make_texts, write_jsonl
from tests.loopback_hub import Fault, LoopbackHub, client_environment
from tests.runs.conftest import SMALL, STEPS, Train, table
from tests.runs.test_hub import make_repository

EVALUATIONS = "SELECT step, split, source, loss, bits_per_byte, accuracy, documents, tokens, bytes FROM evaluations"

AT_ONCE = """
import sys
import trainer.observe.evaluation
import trainer.assemble
evaluation = trainer.observe.evaluation
evaluation.SHORTEST_RUN, evaluation.AUTOMATIC_INTERVAL, evaluation.MOST_TIME = 20, 10, 1e3
trainer.assemble.EVALUATION_PATIENCE = float(sys.argv.pop(1))
import train_slimpajama
sys.exit(train_slimpajama.main())
"""
"""The command, for which 20 documents are a long run."""


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 documents are a long run, and time is no matter."""
    monkeypatch.setattr("trainer.observe.evaluation.SHORTEST_RUN", 20)
    monkeypatch.setattr("trainer.observe.evaluation.AUTOMATIC_INTERVAL", 10)
    monkeypatch.setattr("trainer.observe.evaluation.MOST_TIME", 1000.0)


def measured(folder: Path) -> list[int]:
    return [step for (step,) in table(folder / "training_viz", "SELECT DISTINCT step FROM evaluations ORDER BY step")]


def test_a_long_run_is_measured_unless_it_shall_not_be(
    train: Train, tmp_path: Path, at_once: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--steps", 24, "--out", "on") == 0
    assert "After 24 documents: loss" in capsys.readouterr().out
    assert train("--steps", 24, "--out", "off", "--evaluation-interval", 0) == 0
    assert train("--steps", 19, "--out", "short") == 0
    assert "held-out documents (" not in capsys.readouterr().out
    assert [measured(tmp_path / name) for name in ("on", "off", "short")] == [[9, 19, 23], [], []]
    viz = {name: tmp_path / name / "training_viz" for name in ("on", "off")}
    assert table(viz["on"], STEPS) == table(viz["off"], STEPS)
    # It grows long when it goes on, and is measured from then on.
    assert train("--resume", "--steps", 33, "--out", "short") == 0
    assert measured(tmp_path / "short") == [19, 29, 32]


def test_every_source_is_measured_apart(train: Train, tmp_path: Path) -> None:
    rows = [{"text": text, "source": ("code", "docs")[number % 2]} for number, text in enumerate(make_texts(900))]
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert train("--dataset", "two.jsonl", "--steps", 7, "--evaluation-interval", 5) == 0
    found = table(tmp_path / "training_viz", f"{EVALUATIONS} ORDER BY step, source")
    assert [(step, source) for step, _, source, *_ in found] == [
        (step, source) for step in (4, 6) for source in ("", "code", "docs")
    ]
    for whole, *parts in (found[:3], found[3:]):
        assert [sum(column) for column in list(zip(*parts, strict=True))[6:]] == list(whole[6:])
        assert sum(part[3] * part[7] for part in parts) == pytest.approx(whole[3] * whole[7], rel=1e-12)
        assert min(part[6] for part in parts) > 0


def test_evaluations_go_with_the_run_when_it_stops_goes_back_and_goes_on(train: Train, tmp_path: Path) -> None:
    flags = ("--evaluation-interval", 5, "--checkpoint-interval", 7)
    assert train("--steps", 20, "--out", "whole", *flags) == 0
    assert train("--steps", 14, "--out", "parts", *flags) == 0
    assert measured(tmp_path / "parts") == [4, 9, 13]  # the last one because the run was to end there
    assert train("--resume", "--steps", 20, "--out", "parts") == 0
    assert measured(tmp_path / "parts") == [4, 9, 13, 14, 19]
    # Back to step 7, on whose far side everything is forgotten and made again.
    assert train("--resume", "parts/checkpoints/checkpoint_step_7.bin", "--steps", 20, "--out", "parts") == 0
    assert measured(tmp_path / "parts") == measured(tmp_path / "whole") == [4, 9, 14, 19]
    whole, parts = (table(tmp_path / name / "training_viz", EVALUATIONS) for name in ("whole", "parts"))
    assert whole == parts and len(whole) == 8


@pytest.mark.full
def test_where_nothing_is_left_to_train_on_nothing_is_measured_again(train: Train, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "few.jsonl", make_texts(150))
    assert train("--dataset", "few.jsonl", "--steps", 200, "--evaluation-interval", 100) == 0
    found = table(tmp_path / "training_viz", EVALUATIONS)
    last = measured(tmp_path)[-1]
    assert measured(tmp_path) == [99, last] and 140 < last < 150  # the documents have ended
    assert train("--resume") == 0
    assert table(tmp_path / "training_viz", EVALUATIONS) == found
    assert train("--resume", "--steps", 300, "--repeat") == 0
    assert measured(tmp_path) == [99, last, 199, 299]


def test_where_nothing_is_held_out_a_run_goes_without_unless_it_was_asked_for(
    train: Train, tmp_path: Path, at_once: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.txt").write_text("\n\n".join(make_texts(30)))
    assert train("--dataset", "tiny.txt", "--steps", 20, "--out", "a") == 0
    said = (
        "This run is not evaluated: tiny.txt has no held-out document to evaluate on (one document in 100 is held out)"
    )
    assert capsys.readouterr().out.count(said) == 1
    assert measured(tmp_path / "a") == []
    assert table(tmp_path / "a" / "training_viz", "SELECT detail FROM events WHERE kind = 'no evaluation'") == [(said,)]
    assert train("--dataset", "tiny.txt", "--steps", 20, "--out", "b", "--evaluation-interval", 5) == 2
    assert "tiny.txt has no held-out document" in capsys.readouterr().err
    assert train("--dataset", "tiny.txt", "--steps", 20, "--out", "c", "--evaluation-interval", 0) == 0
    assert "not evaluated" not in capsys.readouterr().out


Start = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Run the command for which 20 documents are a long run, on a Hub, in a process of its own."""

    def run(hub: LoopbackHub, patience: float, *words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", AT_ONCE, str(patience), *SMALL, *map(str, words)],
            cwd=tmp_path,
            env=command_environment() | client_environment(hub.endpoint, tmp_path / "home"),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


@pytest.mark.parametrize(
    "how", [pytest.param({"status": 404, "times": 99}, marks=pytest.mark.full), {"hang_seconds": 9}]
)
def test_a_validation_split_out_of_reach_holds_nothing_up(start: Start, tmp_path: Path, how: dict[str, Any]) -> None:
    with LoopbackHub({"someone/texts": make_repository(tmp_path / "repository", make_texts(60))}) as hub:
        hub.faults = [Fault("example_holdout", **how)]
        done = start(hub, 3, "--dataset", "someone/texts", "--steps", 20, "--max-stall", 30)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("This run is not evaluated: ") == 1
        assert "have not come within 3 seconds" in done.stdout
        assert measured(tmp_path) == [] and len(table(tmp_path / "training_viz", STEPS)) == 20
        hub.faults = []
        assert start(hub, 30, "--dataset", "someone/texts", "--steps", 20, "--out", "well").returncode == 0
    assert measured(tmp_path / "well") == [9, 19]
    assert table(tmp_path / "well" / "training_viz", "SELECT DISTINCT documents FROM evaluations") == [(20,)]


@pytest.mark.full
def test_what_is_trained_on_is_not_held_out(start: Start, tmp_path: Path) -> None:
    with LoopbackHub({"someone/texts": make_repository(tmp_path / "repository", make_texts(60))}) as hub:
        words = ("--dataset", "someone/texts", "--dataset-split", "validation", "--steps", 20)
        done = start(hub, 30, *words)
        assert done.returncode == 0, done.stderr
        assert "someone/texts trains on its validation split, so nothing is held out" in done.stdout
        asked = start(hub, 30, *words, "--evaluation-interval", 5)
    assert (asked.returncode, asked.stdout.count("held out")) == (
        2,
        0,
    ) and "so nothing is held out" in asked.stderr
