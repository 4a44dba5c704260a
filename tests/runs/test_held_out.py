"""Evaluation on held-out documents: by default, across a stop and a resume, and where there are no such documents."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_texts, write_jsonl
from tests.loopback_hub import Fault, LoopbackHub
from tests.runs.conftest import QUICK, STEPS, Capture, Train, table
from tests.runs.test_hub import HubRuns, make_repository
from trainer.observe.evaluation import AutomaticEvaluation

EVALUATIONS = "SELECT step, split, source, loss, bits_per_byte, accuracy, documents, tokens, bytes FROM evaluations"

SOON = replace(QUICK, automatic_evaluation=AutomaticEvaluation(interval=10, shortest_run=20, share_of_time=1e3))
"""A run of 20 documents is evaluated, whatever that costs."""


def measured(folder: Path) -> list[int]:
    return [step for (step,) in table(folder / "training_viz", "SELECT DISTINCT step FROM evaluations ORDER BY step")]


def test_a_long_run_is_evaluated_by_default(train: Train, tmp_path: Path, capsys: Capture) -> None:
    assert train("--steps", 24, "--out", "on", builders=SOON) == 0
    assert "After 24 documents: loss" in capsys.readouterr().out
    assert train("--steps", 24, "--out", "off", "--evaluation-interval", 0, builders=SOON) == 0
    assert train("--steps", 19, "--out", "short", builders=SOON) == 0
    assert "held-out documents (" not in capsys.readouterr().out
    assert [measured(tmp_path / name) for name in ("on", "off", "short")] == [[9, 19, 23], [], []]
    viz = {name: tmp_path / name / "training_viz" for name in ("on", "off")}
    assert table(viz["on"], STEPS) == table(viz["off"], STEPS)
    # A resume that makes it long evaluates it from then on.
    assert train("--resume", "--steps", 22, "--out", "short", builders=SOON) == 0
    assert measured(tmp_path / "short") == [19, 21]


def test_every_source_is_evaluated_separately(train: Train, tmp_path: Path) -> None:
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


def test_evaluations_follow_the_run_when_it_stops_goes_back_and_resumes(train: Train, tmp_path: Path) -> None:
    flags = ("--evaluation-interval", 5, "--checkpoint-interval", 7)
    assert train("--steps", 20, "--out", "whole", *flags) == 0
    assert train("--steps", 14, "--out", "parts", *flags) == 0
    assert measured(tmp_path / "parts") == [4, 9, 13]  # the last one because the run ended there as planned
    assert train("--resume", "--steps", 20, "--out", "parts") == 0
    assert measured(tmp_path / "parts") == [4, 9, 13, 14, 19]
    # Back to step 7: everything after it is deleted and made again.
    assert train("--resume", "parts/checkpoints/checkpoint_step_7.bin", "--steps", 20, "--out", "parts") == 0
    assert measured(tmp_path / "parts") == measured(tmp_path / "whole") == [4, 9, 14, 19]
    whole, parts = (table(tmp_path / name / "training_viz", EVALUATIONS) for name in ("whole", "parts"))
    assert whole == parts and len(whole) == 8


@pytest.mark.full
def test_without_new_documents_a_resume_evaluates_nothing(train: Train, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "few.jsonl", make_texts(150))
    assert train("--dataset", "few.jsonl", "--steps", 200, "--evaluation-interval", 100) == 0
    found = table(tmp_path / "training_viz", EVALUATIONS)
    last = measured(tmp_path)[-1]
    assert measured(tmp_path) == [99, last] and 140 < last < 150  # the documents have ended
    assert train("--resume") == 0
    assert table(tmp_path / "training_viz", EVALUATIONS) == found
    assert train("--resume", "--steps", 300, "--repeat") == 0
    assert measured(tmp_path) == [99, last, 199, 299]


def test_without_held_out_documents_only_a_requested_evaluation_is_an_error(
    train: Train, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "tiny.txt").write_text("\n\n".join(make_texts(30)))
    assert train("--dataset", "tiny.txt", "--steps", 20, "--out", "a", builders=SOON) == 0
    said = (
        "This run is not evaluated: tiny.txt has no held-out document to evaluate on (one document in 100 is held out)"
    )
    assert capsys.readouterr().out.count(said) == 1
    assert measured(tmp_path / "a") == []
    assert table(tmp_path / "a" / "training_viz", "SELECT detail FROM events WHERE kind = 'no evaluation'") == [(said,)]
    assert train("--dataset", "tiny.txt", "--steps", 20, "--out", "b", "--evaluation-interval", 5, builders=SOON) == 2
    assert "tiny.txt has no held-out document" in capsys.readouterr().err
    assert train("--dataset", "tiny.txt", "--steps", 20, "--out", "c", "--evaluation-interval", 0, builders=SOON) == 0
    assert "not evaluated" not in capsys.readouterr().out


@pytest.mark.full
@pytest.mark.parametrize("how", [{"status": 404, "times": 99}, {"hang_seconds": 6}])
def test_a_validation_split_out_of_reach_does_not_stop_the_run(tmp_path: Path, how: dict[str, Any]) -> None:
    with LoopbackHub({"someone/texts": make_repository(tmp_path / "repository", make_texts(60))}) as hub:
        hub.faults = [Fault("example_holdout", **how)]
        with HubRuns(hub, tmp_path) as runs:
            words = "--dataset someone/texts --steps 20 --max-stall 30"
            code, output = runs.run(words, patience=1)
            assert code == 0 and output.count("This run is not evaluated: ") == 1
            assert "did not arrive within 1 second" in output
            assert measured(tmp_path) == [] and len(table(tmp_path / "training_viz", STEPS)) == 20
            hub.faults = []
            code, output = runs.run(f"{words} --out well")
            assert code == 0, output
    assert measured(tmp_path / "well") == [9, 19]
    assert table(tmp_path / "well" / "training_viz", "SELECT DISTINCT documents FROM evaluations") == [(20,)]


@pytest.mark.full
def test_a_run_that_trains_on_the_validation_split_has_nothing_held_out(tmp_path: Path) -> None:
    words = "--dataset someone/texts --dataset-split validation --steps 20"
    reason = "someone/texts trains on its validation split, so nothing is held out"
    with (
        LoopbackHub({"someone/texts": make_repository(tmp_path / "repository", make_texts(60))}) as hub,
        HubRuns(hub, tmp_path) as runs,
    ):
        code, output = runs.run(words)
        assert code == 0 and reason in output
        code, output = runs.run(f"{words} --evaluation-interval 5")
        assert code == 2 and output == f"train_slimpajama.py: {reason}\n"
