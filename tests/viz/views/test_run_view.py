import math
from pathlib import Path

import numpy as np
import pytest

from tests.viz.conftest import Metrics, write_store
from tests.viz.runs_to_draw import columns_of, view_of
from tests.viz.small_tokenizers import MODELS, encode
from viz.charts.figure import Chart
from viz.record.reader import StoreReader
from viz.record.schema import rows_of
from viz.record.writer import StoreWriter
from viz.views.run_view import BINS, View, Viewer, by_position, furthest_above, spread, verdict


def test_stand_outs_are_furthest_above_the_average_of_their_source() -> None:
    columns = columns_of(500)
    columns["source"] = np.array(["hard", "easy"], dtype=object)[np.arange(500) % 2]
    columns["loss"] = np.where(np.arange(500) % 2 == 0, 8.0, 2.0)
    for step, excess in ((301, 3.0), (400, 1.5), (77, 2.0), (203, 0.5), (30, 9.0)):  # step 30 is in the warm-up
        columns["loss"][step] += excess
    view = view_of(columns)
    assert [one.step for one in view.stand_outs] == [301, 77, 400]
    assert [one.excess for one in view.stand_outs] == pytest.approx([3.0, 2.0, 1.5], abs=0.2)
    assert view.stand_outs[0].source == "easy"  # although every hard document has a greater loss
    assert furthest_above(View(view.run, 60, view.series, 60)) == []
    assert furthest_above(View(view.run, 350, view.series, 350))[:2] == [301, 77]  # later documents don't count


def test_losses_by_position_are_means_over_documents_in_logarithmic_bins() -> None:
    found = by_position([np.arange(1.0, 11.0), np.arange(3.0, 13.0), *[np.array([5.0])] * 4])
    assert found.documents == 6
    assert found.places.tolist() == [1.0]  # only two documents are longer
    values = np.array([1.0, 3.0, 5.0, 5.0, 5.0, 5.0])
    assert found.mean.tolist() == [values.mean()]
    assert found.error == pytest.approx(values.std(ddof=1) / math.sqrt(6))
    found = by_position([8 - np.log(np.arange(1.0, 256.0))] * 9)
    assert 15 < len(found.places) <= BINS and found.places[0] == 1 and (np.diff(found.places) > 0).all()
    np.testing.assert_allclose(found.mean, 8 - np.log(found.places), atol=0.06)
    np.testing.assert_allclose(found.error, 0, atol=1e-12)
    assert not len(by_position([np.full(40, math.nan)] * 6).places)  # a run that diverged


def test_moments_have_equal_ratios_and_include_first_and_last() -> None:
    places = [(step, 7 + step) for step in (0, 50, 100, 150, 200, 300, 400, 600, 800, 1200, 1600, 2400, 3200)]
    assert [number - 7 for number in spread(places, 4)] == [0, 200, 800, 3200]
    assert spread(places[:3], 4) == [7, 57, 107] and spread([], 4) == []


@pytest.fixture
def store(tmp_path: Path, metrics: Metrics) -> Path:
    """A run of 60 documents whose first prompt is repeated at 20 and 40, with events and an invalid tokenizer."""
    run = {"config": {"warmup_steps": 5, "num_steps": 100}, "vocab_size": 400, "source": "s", "tokenizer": b"none"}
    writer = StoreWriter(tmp_path / "run.db", run)
    for step in range(60):
        own = {"prompt": f"p{step}", "reference": "r"} if step % 10 == 0 else {}
        writer.add_rows(rows_of(metrics(step, source="a", **own), "in" if own else "", f"out {step}" if own else ""))
        if step in (20, 40):
            writer.add_rows(rows_of({"step": step, "prompt": "p0"}, "", f"again {step}"))
    for step, kind in ((30, "checkpoint"), (45, "resume"), (60, "checkpoint"), (12, "spike"), (50, "spike")):
        writer.add("events", {"time": 0.0, "step": step, "kind": kind, "detail": ""})
    writer.close()
    return tmp_path / "run.db"


def test_a_view_is_as_of_its_step(store: Path) -> None:
    with StoreReader(store) as reader:
        viewer = Viewer(reader)
        early, whole, again = viewer.look(35), viewer.look(), viewer.look(35)
        # A spike belongs to its document; a checkpoint to the documents before it.
        assert [reader.steps_of_events(step).get("spike") for step in (12, 13)] == [None, [12]]
        assert [reader.steps_of_events(step).get("checkpoint") for step in (29, 30)] == [None, [30]]
    assert (early.step, early.count, whole.step, whole.count) == (35, 35, 60, 60)
    assert [row["output"] for row in early.moments] == ["out 0", "again 20"]
    assert [row["output"] for row in whole.moments] == ["out 0", "again 20", "again 40"]
    assert early.events == {"checkpoint": [30], "spike": [12]}
    assert whole.events == {"checkpoint": [30, 60], "resume": [45], "spike": [12, 50]}
    assert early.sample is not None and early.sample["step"] == 30
    assert [[one.documents for one in view.positions] for view in (whole, early)] == [[30, 30], [17, 17]]
    assert {one.words for one in whole.stand_outs} == {""}  # without a tokenizer, no words and no failure
    assert [one.step for one in again.stand_outs] == [one.step for one in early.stand_outs]


def test_words_are_decoded_with_the_tokenizer_in_the_store(tmp_path: Path, metrics: Metrics) -> None:
    about = {"source": "a", "token_ids": encode("nine ten one two  three four five six"), "token_losses": None}
    calls = [metrics(step, loss=9.0 if step == 33 else 3.0, **about) for step in range(40)]
    write_store(tmp_path, calls, config={"warmup_steps": 0}, tokenizer=MODELS["ours"])
    with StoreReader(tmp_path / "run.db") as reader:
        found = Viewer(reader).look().stand_outs[0]
    assert (found.step, found.words) == (33, "nine ten one two three four")


def test_the_prompt_of_the_user_is_shown(tmp_path: Path, metrics: Metrics) -> None:
    writer = StoreWriter(tmp_path / "run.db", {})
    for step in range(0, 60, 10):
        writer.add_rows(rows_of(metrics(step, prompt="own", reference="r"), "in", "own"))
        for text in ("first", "second") if step >= 20 else ("other",):
            writer.add_rows(rows_of({"step": step, "prompt": text}, text, f"{text} {step}"))
    writer.close()
    with StoreReader(tmp_path / "run.db") as reader:
        moments = [[row["output"] for row in Viewer(reader).look(step).moments] for step in (60, 15)]
    assert moments == [["first 20", "first 30", "first 40", "first 50"], ["other 0", "other 10"]]


def test_newest_documents_without_a_finite_loss_have_no_positions(tmp_path: Path, metrics: Metrics) -> None:
    losses = [math.nan if step >= 12 else 3.0 for step in range(30)]
    calls = [metrics(step, loss=loss, token_losses=np.full(255, loss)) for step, loss in enumerate(losses)]
    write_store(tmp_path, calls)
    with StoreReader(tmp_path / "run.db") as reader:
        view = Viewer(reader).look()
    assert [one.documents for one in view.positions] == [15] and len(view.positions[0].places)
    Chart((400, 250)).draw(view)


def test_repeated_steps_are_read_again_and_their_spikes_count_once(store: Path, metrics: Metrics) -> None:
    with StoreReader(store) as reader:
        viewer = Viewer(reader)
        assert viewer.look().events["spike"] == [12, 50]
        writer = StoreWriter(store, {}, resume=True)
        writer.rewind(40)
        for step, kind in ((40, "resume"), (50, "spike")):  # the same document as before
            writer.add("events", {"time": 0.0, "step": step, "kind": kind, "detail": ""})
        for step in range(40, 60):
            writer.add_rows(rows_of(metrics(step, source="a", loss=77.0)))
        writer.close()
        view = viewer.look()
    assert view.events["spike"] == [12, 50, 50] and view.spikes == [12, 50]
    assert verdict(view).endswith(" · 2 spikes")
    assert view.count == 60 and set(view.column("loss")[40:]) == {77.0}


def test_the_remaining_time_follows_the_speed_of_the_last_documents() -> None:
    columns = columns_of(1000)
    columns["seconds"][:500], columns["seconds"][500:] = 10.0, 0.25
    columns["seconds"][900] = 3600.0  # a suspended laptop
    assert view_of(columns, run={"config": {"num_steps": 1400}}).seconds_left == pytest.approx(100.0)
    for run in ({"config": {"num_steps": 1000}}, {"config": {"num_steps": 1400}, "ended": 1.0}):
        assert view_of(columns, run=run).seconds_left is None
    assert view_of(columns_of(0)).seconds_left is None


def test_an_empty_store_has_an_empty_view(tmp_path: Path) -> None:
    with StoreReader(write_store(tmp_path) / "run.db") as reader:
        view = Viewer(reader).look()
    assert (view.step, view.count, view.stand_outs, view.positions, view.moments) == (0, 0, [], [], [])
