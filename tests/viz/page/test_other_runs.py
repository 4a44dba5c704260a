"""The runs that the page can compare with, and the answers about a comparison."""

import math
from pathlib import Path
from typing import Any

import pytest

from tests.viz.conftest import Metrics, write_store
from tests.viz.page.test_answers import strict
from viz.page.live_run import LiveRun, NoRun
from viz.page.other_runs import OtherRuns
from viz.page.query import NotThere


def make(folder: Path, run_id: str, metrics: Metrics, losses: list[float], **about: Any) -> Path:
    """Write a run whose document texts are identified by their number, so that two such runs share documents."""
    described = {"run_id": run_id, "tokenizer_hash": "t", "config": {"seed": 1}, "started": 5.0} | about
    calls = (
        metrics(step, loss=loss, text_hash=step.to_bytes(32, "big"), source="ab"[step % 2], tokens=255)
        for step, loss in enumerate(losses)
    )
    return write_store(folder, calls, **described)


def noise(step: int) -> float:
    return 3 + math.sin(step * step)


@pytest.fixture
def runs(tmp_path: Path, metrics: Metrics) -> OtherRuns:
    """A run, an earlier one in its folder, and one elsewhere with a loss 0.5 nats lower on each document."""
    here = make(tmp_path / "here", "this", metrics, [noise(step) for step in range(100)], started=9.0, model="small")
    make(here / "earlier" / "old", "old", metrics, [noise(step) for step in range(60)], started=7.0)
    better = [noise(step) - 0.5 - 0.01 * math.cos(step) for step in range(80)]
    there = make(tmp_path / "there" / "training_viz", "better", metrics, better, started=8.0, config={"seed": 2})
    return OtherRuns(LiveRun(here), [there.parent, tmp_path / "nowhere"])


def test_runs_of_this_and_other_folders_are_listed(runs: OtherRuns) -> None:
    known = strict(runs.known())
    assert [(one["run_id"], one["documents"], one["is_this"]) for one in known] == [
        ("this", 100, True), ("old", 60, False), ("better", 80, False),
    ]  # fmt: skip
    assert known[0]["model"] == "small" and known[0]["loss"] == pytest.approx(
        sum(noise(step) for step in range(100)) / 100, rel=1e-5
    )
    assert known[2]["folder"].endswith("there/training_viz")


def test_each_document_of_two_runs_is_compared(runs: OtherRuns) -> None:
    answer = strict(runs.compare("better", 800))
    assert answer["documents"] == 80 and answer["unit"] == "nats per token"
    expected = [0.5 + 0.01 * math.cos(step) for step in range(80)]
    assert answer["difference"] == pytest.approx(sum(expected) / 80, rel=1e-4)
    assert 0 < answer["half_width"] < 0.01
    assert answer["sentence"].startswith("The other run is better by 0.50")
    assert answer["names"] == ["this run", "the other run"]
    assert "this" in answer["about"][0] and "better" in answer["about"][1]
    assert [(one["source"], one["documents"]) for one in answer["sources"]] == [("a", 40), ("b", 40)]
    assert answer["single"]["steps"] == list(range(80))
    assert answer["single"]["values"] == pytest.approx(expected, abs=1e-5)
    assert len(answer["curves"]) == 2
    for curve in (*answer["curves"], answer["difference_curve"]):
        assert len(curve["steps"]) == len(curve["values"]) == len(curve["band"]) > 50
        assert curve["band"][0] is None and curve["band"][-1] > 0
    assert any("seed" in note for note in answer["notes"])
    few = strict(runs.compare("better", 10))
    assert max(len(curve["steps"]) for curve in (few["single"], *few["curves"])) <= 22
    same = strict(runs.compare("this", 800))
    assert same["difference"] == 0 and "same run" in same["notes"][0]


def test_only_documents_from_a_step(runs: OtherRuns) -> None:
    answer = strict(runs.compare("old", 800, 30))
    assert answer["documents"] == 30 and answer["single"]["steps"] == list(range(30, 60))
    assert "same loss on each" in answer["sentence"] and set(answer["single"]["values"]) == {0.0}


@pytest.mark.parametrize("run_id", ["nobody", "", "../here", "x" * 5000])
def test_an_unknown_run_names_the_known_ones(runs: OtherRuns, run_id: str) -> None:
    with pytest.raises(NotThere, match=r"known: this, old, better$") as caught:
        runs.compare(run_id, 800)
    assert len(str(caught.value)) < 300


def test_a_comparison_of_few_or_no_documents(runs: OtherRuns, tmp_path: Path, metrics: Metrics) -> None:
    """Documents without a finite loss are excluded; without any document left, the reason is stated."""
    ugly = make(tmp_path / "ugly", "ugly", metrics, [(math.nan, math.inf, noise(k))[k % 3] for k in range(50)])
    empty = write_store(tmp_path / "empty", run_id="empty")
    others = OtherRuns(LiveRun(tmp_path / "here"), [ugly, empty])
    answer = strict(others.compare("ugly", 800))
    assert answer["documents"] == 16 and answer["half_width"] is None
    assert "34 documents excluded: their loss or number of tokens is not finite" in answer["notes"]
    for compare, reason in (
        (lambda: runs.compare("better", 800, 5000), "share no document from step 5,000"),
        (lambda: others.compare("empty", 800), "no steps yet"),
    ):
        with pytest.raises(NotThere, match=reason):
            compare()


def test_other_runs_may_appear_later(tmp_path: Path, metrics: Metrics) -> None:
    runs = OtherRuns(LiveRun(tmp_path / "here"), [tmp_path / "later"])
    with pytest.raises(NoRun):
        runs.known()
    with pytest.raises(NoRun):
        runs.compare("a", 800)
    make(tmp_path / "here", "this", metrics, [3.0] * 5)
    assert len(runs.known()) == 1
    make(tmp_path / "later", "later", metrics, [2.0] * 5)
    (tmp_path / "here" / "earlier" / "damaged").mkdir(parents=True)  # it is not listed
    (tmp_path / "here" / "earlier" / "damaged" / "run.db").write_bytes(b"no database" * 100)
    assert {one["run_id"] for one in runs.known()} == {"this", "later"}
    assert strict(runs.compare("later", 800))["difference"] == 1.0
