"""The runs that a page offers to compare with, and what it is told of the comparison."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from viz.page.live_run import LiveRun, NoRun
from viz.page.other_runs import Pairs
from viz.page.query import NotThere
from viz.record.schema import rows_of
from viz.record.writer import StoreWriter

Metrics = Callable[..., dict[str, Any]]


def make(folder: Path, run_id: str, metrics: Metrics, losses: list[float], **about: Any) -> Path:
    """A run of documents whose texts are known by their number: two of these runs have read the same ones."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {"run_id": run_id, "tokenizer_hash": "t", "config": {"seed": 1}, "started": 5.0}
    writer = StoreWriter(folder / "run.db", told | about)
    for step, loss in enumerate(losses):
        number = step.to_bytes(32, "big")
        writer.add_rows(rows_of(metrics(step, loss=loss, text_hash=number, source="ab"[step % 2], tokens=255)))
    writer.close()
    return folder


def noise(step: int) -> float:
    return 3 + math.sin(step * step)


@pytest.fixture
def pairs(tmp_path: Path, metrics: Metrics) -> Pairs:
    """A run, an earlier one in its folder, and one elsewhere whose documents cost 0.5 nats less each."""
    here = make(tmp_path / "here", "this", metrics, [noise(step) for step in range(100)], started=9.0, model="small")
    make(here / "earlier" / "old", "old", metrics, [noise(step) for step in range(60)], started=7.0)
    better = [noise(step) - 0.5 - 0.01 * math.cos(step) for step in range(80)]
    there = make(tmp_path / "there" / "training_viz", "better", metrics, better, started=8.0, config={"seed": 2})
    return Pairs(LiveRun(here), [there.parent, tmp_path / "nowhere"])


def strict(answer: Any) -> Any:
    return json.loads(json.dumps(answer, allow_nan=False))


def test_runs_of_the_folder_and_of_others_are_known(pairs: Pairs) -> None:
    known = strict(pairs.known())
    assert [(one["run_id"], one["documents"], one["is_this"]) for one in known] == [
        ("this", 100, True), ("old", 60, False), ("better", 80, False),
    ]  # fmt: skip
    assert known[0]["model"] == "small" and known[0]["loss"] == pytest.approx(
        sum(noise(step) for step in range(100)) / 100, rel=1e-5
    )
    assert known[2]["folder"].endswith("there/training_viz")


def test_each_document_of_two_runs_is_compared(pairs: Pairs) -> None:
    told = strict(pairs.compare("better", 800))
    assert told["documents"] == 80 and told["unit"] == "nats per token"
    expected = [0.5 + 0.01 * math.cos(step) for step in range(80)]
    assert told["difference"] == pytest.approx(sum(expected) / 80, rel=1e-4)
    assert 0 < told["half_width"] < 0.01
    assert told["sentence"].startswith("The other run is better by 0.50")
    assert told["names"] == ["this run", "the other run"]
    assert "this" in told["about"][0] and "better" in told["about"][1]
    assert [(one["source"], one["documents"]) for one in told["sources"]] == [("a", 40), ("b", 40)]
    assert told["single"]["steps"] == list(range(80))
    assert told["single"]["values"] == pytest.approx(expected, abs=1e-5)
    assert len(told["curves"]) == 2
    for curve in (*told["curves"], told["difference_curve"]):
        assert len(curve["steps"]) == len(curve["values"]) == len(curve["band"]) > 50
        assert curve["band"][0] is None and curve["band"][-1] > 0
    assert any("the seed differs" in note for note in told["notes"])


def test_a_part_of_the_documents(pairs: Pairs) -> None:
    told = strict(pairs.compare("old", 800, 30))
    assert told["documents"] == 30 and told["single"]["steps"] == list(range(30, 60))
    assert "same loss on each" in told["sentence"] and set(told["single"]["values"]) == {0.0}


def test_few_points_are_few(pairs: Pairs) -> None:
    told = strict(pairs.compare("better", 10))
    assert len(told["single"]["steps"]) <= 22
    assert max(len(curve["steps"]) for curve in told["curves"]) <= 22


def test_a_run_against_itself(pairs: Pairs) -> None:
    told = strict(pairs.compare("this", 800))
    assert told["difference"] == 0 and "are the same run" in told["notes"][0]


@pytest.mark.parametrize("run_id", ["nobody", "", "../here", "x" * 5000])
def test_a_run_that_is_not_known_is_said_with_those_that_are(pairs: Pairs, run_id: str) -> None:
    with pytest.raises(NotThere, match=r"known: this, old, better$") as caught:
        pairs.compare(run_id, 800)
    assert len(str(caught.value)) < 300


def test_runs_with_nothing_in_common(pairs: Pairs, tmp_path: Path, metrics: Metrics) -> None:
    with pytest.raises(NotThere, match="share no document from step 5,000"):
        pairs.compare("better", 800, 5000)
    (tmp_path / "empty").mkdir()
    StoreWriter(tmp_path / "empty" / "run.db", {"run_id": "empty"}).close()
    with pytest.raises(NotThere, match="no steps yet"):
        Pairs(LiveRun(tmp_path / "here"), [tmp_path / "empty"]).compare("empty", 800)


def test_losses_that_are_not_finite_are_left_out(tmp_path: Path, metrics: Metrics) -> None:
    here = make(tmp_path / "here", "this", metrics, [noise(step) for step in range(50)])
    ugly = [(math.nan, math.inf, noise(step))[step % 3] for step in range(50)]
    there = make(tmp_path / "there", "ugly", metrics, ugly)
    told = strict(Pairs(LiveRun(here), [there]).compare("ugly", 800))
    assert told["documents"] == 16 and told["half_width"] is None
    assert "34 documents excluded: their loss or number of tokens is not finite" in told["notes"]
    all_ugly = make(tmp_path / "all", "all ugly", metrics, [math.nan] * 50)
    with pytest.raises(NotThere, match="no document that can be compared"):
        Pairs(LiveRun(here), [all_ugly]).compare("all ugly", 800)


def test_a_damaged_run_is_not_offered(tmp_path: Path, metrics: Metrics) -> None:
    here = make(tmp_path / "here", "this", metrics, [3.0] * 5)
    (here / "earlier" / "broken").mkdir(parents=True)
    (here / "earlier" / "broken" / "run.db").write_bytes(b"no database" * 100)
    assert [one["run_id"] for one in strict(Pairs(LiveRun(here)).known())] == ["this"]


def test_without_a_run_there_is_nothing_to_compare(tmp_path: Path) -> None:
    pairs = Pairs(LiveRun(tmp_path))
    with pytest.raises(NoRun):
        pairs.known()
    with pytest.raises(NoRun):
        pairs.compare("a", 800)


def test_other_runs_may_come_later(tmp_path: Path, metrics: Metrics) -> None:
    here = make(tmp_path / "here", "this", metrics, [3.0] * 5)
    pairs = Pairs(LiveRun(here), [tmp_path / "later"])
    assert len(pairs.known()) == 1
    make(tmp_path / "later", "later", metrics, [2.0] * 5)
    assert {one["run_id"] for one in pairs.known()} == {"this", "later"}
    assert strict(pairs.compare("later", 800))["difference"] == 1.0
