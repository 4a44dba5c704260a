"""The benchmark of learning with a tiny model: what it stores, and that an interrupted run resumes exactly."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import chart, learning, learning_runs, page
from benchmarks.learning_runs import Run


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning_runs, "STATE_INTERVAL", 4)
    monkeypatch.setattr(learning_runs, "EVALUATION_INTERVAL", 4)
    monkeypatch.setattr(learning_runs, "GOAL", 4)
    data = learning_runs.embedded_data()
    few = learning_runs.Data(data.training[:20], data.held_out[:5], data.vocab_size)
    for module in (learning, learning_runs):
        monkeypatch.setattr(module, "embedded_data", lambda: few)


@pytest.mark.usefixtures("quick")
def test_an_interrupted_run_resumes_exactly_and_is_in_the_table(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    runs = [Run(contender, 1e-3, 0, 8, "tiny") for contender in ("ours", "adamw")]
    for run in runs:
        learning_runs.train(run, whole)
        learning_runs.train(Run(run.contender, 1e-3, 0, 4, "tiny"), parts)
        learning_runs.train(run, parts)
        learning_runs.train(run, parts)  # nothing is left to do
        kept = [json.loads((folder / f"{run.name}.json").read_text()) for folder in (whole, parts)]
        assert kept[0] == kept[1] and len(kept[0]["losses"]) == 8 and list(kept[0]["held_out"]) == ["4", "8"]
    lines = learning.table(whole, runs)
    assert [line.split(" | ")[0] for line in lines if line.startswith(("| ours", "| adamw"))] == ["| adamw", "| ours"]


def test_documents_to_a_loss() -> None:
    curve = {250: 6.0, 500: 5.0, 750: 4.0}
    assert [learning._documents_to(curve, loss) for loss in (6.5, 5.5, 4.0, 3.9)] == [250, 375, 750, float("inf")]


@pytest.mark.usefixtures("quick")
def test_how_far_a_long_run_rose_and_what_was_not_finite(tmp_path: Path) -> None:
    run = Run("ours", 1e-3, 0, 600, "tiny")
    losses: list[float | None] = [5.0] * 200 + [4.0] * 200 + [4.5] * 200
    kept = {**learning_runs.read_run(tmp_path, run), "losses": losses}
    (tmp_path / f"{run.name}.json").write_text(json.dumps(kept))
    line = learning._steadiness(tmp_path, run, {200: 4.9, 400: 3.5, 600: 3.75})
    assert "losses not finite: 0" in line and "average of 200 0.50 nats, held-out loss 0.250" in line
    kept["losses"][500] = None
    (tmp_path / f"{run.name}.json").write_text(json.dumps(kept))
    assert "losses not finite: 1" in learning._steadiness(tmp_path, run, {200: 4.9})


@pytest.mark.usefixtures("quick")
def test_a_run_with_another_recipe_counts_as_missing(tmp_path: Path) -> None:
    run = Run("ours", 1e-3, 0, 4, "tiny")
    learning_runs.train(run, tmp_path)
    path = tmp_path / f"{run.name}.json"
    kept = json.loads(path.read_text())
    assert kept["made_with"]["matrix_rate"] == 2.5 and len(kept["losses"]) == 4
    path.write_text(json.dumps({**kept, "made_with": {**kept["made_with"], "matrix_rate": 3.0}}))
    assert learning_runs.read_run(tmp_path, run)["losses"] == []
    state = tmp_path / f"{run.name}.state"
    saved = torch.load(state, weights_only=True)
    torch.save({**saved, "kept": path.read_text(), "done": 2}, state)
    learning_runs.train(run, tmp_path)  # from its first document, not from that state
    assert json.loads(path.read_text()) == kept


@pytest.mark.full
def test_what_a_page_costs(capsys: pytest.CaptureFixture[str]) -> None:
    page.main([60])
    (row,) = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert row[0].strip() == "60" and all(float(cell) > 0 for cell in row[2:4])


def test_what_a_chart_costs(capsys: pytest.CaptureFixture[str]) -> None:
    chart.main([5, 60])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0].strip() for row in rows] == ["5", "60"]
    assert all(float(cell) > 0 for row in rows for cell in row[2:])
