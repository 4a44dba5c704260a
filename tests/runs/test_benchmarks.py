"""The benchmark of learning with a tiny model: what it stores, and that an interrupted run resumes exactly."""

import dataclasses
import json
import random
from pathlib import Path

import pytest
import torch

from benchmarks import chart, learning, learning_runs, page
from benchmarks.learning_runs import Data, Results, Run
from tests.runs.conftest import Capture


@pytest.fixture
def results(tmp_path: Path) -> Results:
    generator = random.Random(0)
    ids = [[generator.randrange(300) for _ in range(30)] for _ in range(25)]
    return Results(tmp_path, Data(training=ids[:20], held_out=ids[20:], vocab_size=300))


def train(run: Run, results: Results) -> None:
    learning_runs.train(run, results, goal=4, evaluation_interval=4, state_interval=4)


def test_an_interrupted_run_resumes_exactly_and_is_in_the_table(results: Results) -> None:
    parts = dataclasses.replace(results, folder=results.folder / "parts")
    parts.folder.mkdir()
    runs = [Run(contender, 1e-3, 0, 8, "tiny") for contender in ("ours", "adamw")]
    for run in runs:
        train(run, results)
        train(dataclasses.replace(run, documents=4), parts)
        train(run, parts)
        train(run, parts)  # nothing is left to do
        kept = [json.loads((where.folder / f"{run.name}.json").read_text()) for where in (results, parts)]
        assert kept[0] == kept[1] and len(kept[0]["losses"]) == 8 and list(kept[0]["held_out"]) == ["4", "8"]
    lines = learning.table(results, runs)
    assert [line.split(" | ")[0] for line in lines if line.startswith(("| ours", "| adamw"))] == ["| adamw", "| ours"]


def test_documents_to_a_loss() -> None:
    curve = {250: 6.0, 500: 5.0, 750: 4.0}
    assert [learning._documents_to(curve, loss) for loss in (6.5, 5.5, 4.0, 3.9)] == [250, 375, 750, float("inf")]


def test_a_long_run_reports_rises_and_losses_that_are_not_finite(results: Results) -> None:
    run = Run("ours", 1e-3, 0, 600, "tiny")
    losses: list[float | None] = [5.0] * 200 + [4.0] * 200 + [4.5] * 200
    results.write(run, {**results.read(run), "losses": losses})
    line = learning._steadiness(results, run, {200: 4.9, 400: 3.5, 600: 3.75})
    assert "losses not finite: 0" in line and "average of 200 0.50 nats, held-out loss 0.250" in line
    losses[500] = None
    results.write(run, {**results.read(run), "losses": losses})
    assert "losses not finite: 1" in learning._steadiness(results, run, {200: 4.9})


def test_a_run_with_another_recipe_counts_as_missing(results: Results) -> None:
    run = Run("ours", 1e-3, 0, 4, "tiny")
    train(run, results)
    kept = results.read(run)
    assert kept["made_with"]["matrix_rate"] == 2.5 and len(kept["losses"]) == 4
    other = {**kept, "made_with": {**kept["made_with"], "matrix_rate": 3.0}}
    results.write(run, other)
    assert results.read(run)["losses"] == []
    state = results.folder / f"{run.name}.state"
    saved = torch.load(state, weights_only=True)
    torch.save({**saved, "kept": json.dumps(other), "done": 2}, state)
    train(run, results)  # from its first document, not from that state
    assert results.read(run) == kept


@pytest.mark.full
def test_the_cost_of_a_page(capsys: Capture) -> None:
    page.main([60])
    (row,) = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert row[0].strip() == "60" and all(float(cell.replace(",", "")) > 0 for cell in row[2:4])


@pytest.mark.full
def test_the_cost_of_a_chart(capsys: Capture) -> None:
    chart.main([5, 60])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0].strip() for row in rows] == ["5", "60"]
    assert all(float(cell) > 0 for row in rows for cell in row[2:])
