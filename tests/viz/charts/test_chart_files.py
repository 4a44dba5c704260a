import itertools
from pathlib import Path
from typing import Any

import pytest

from tests.viz.conftest import Metrics, write_store
from viz.charts import chart_files
from viz.charts.chart_files import delete_charts_after, draw_picture, draw_run, numbered_charts, thin_charts
from viz.charts.figure import Chart
from viz.record.reader import StoreReader
from viz.record.schema import rows_of
from viz.record.writer import StoreWriter
from viz.views.run_view import Viewer


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".png"}


def test_a_chart_shows_the_run_as_of_its_step(filled: Path, tmp_path_factory: Any) -> None:
    with StoreReader(filled / "run.db") as store:
        early = draw_run(Chart(), Viewer(store), filled, 10).read_bytes()
        columns, (sample, _) = store.columns(below_step=10), store.text_samples()
        losses = store.token_losses(0, 10)
    other = tmp_path_factory.mktemp("other")
    writer = StoreWriter(other / "run.db", {"source": "python-library", "model": "small 13.8 M"})
    for step in range(10):
        given = {name: columns[name][step] for name in columns if name not in ("steps", "source", "tokens", "bytes")}
        given |= {"step": step, "source": columns["source"][step], "tokens": int(columns["tokens"][step])}
        given |= {"token_ids": [1, 2], "token_losses": losses[step]}
        writer.add_rows(rows_of(given, *((sample["input"], sample["output"]) if step == 0 else ("", ""))))
    writer.close()
    with StoreReader(other / "run.db") as store:
        assert len(store.columns()["steps"]) == 10
        assert draw_run(Chart(), Viewer(store), other, 10).read_bytes() == early
    assert draw_picture(other) == draw_picture(filled, 10) == early


def test_the_latest_chart_is_the_newest_numbered_one(filled: Path) -> None:
    with StoreReader(filled / "run.db") as store:
        chart, viewer = Chart((400, 250)), Viewer(store)
        for step in (10, 20, 5):
            draw_run(chart, viewer, filled, step)
    files = files_of(filled)
    expected = ["training_latest.png", *(f"training_step_{step:06d}.png" for step in (5, 10, 20))]
    assert sorted(files) == expected
    assert files["training_latest.png"] == files["training_step_000020.png"]
    delete_charts_after(filled, 10)
    files = files_of(filled)
    assert sorted(files) == expected[:3]
    assert files["training_latest.png"] == files["training_step_000010.png"]
    delete_charts_after(filled, 0)
    assert files_of(filled) == {}


def test_a_chart_drawn_during_the_run_equals_one_drawn_afterwards(filled: Path, metrics: Metrics) -> None:
    with StoreReader(filled / "run.db") as store:
        viewer, chart = Viewer(store), Chart()
        before = chart.draw(viewer.look(20))
        write_store(filled, map(metrics, range(20, 60)), resume=True)
        assert chart.draw(viewer.look(60)) == draw_picture(filled)
        assert chart.draw(viewer.look(20)) == before  # an older chart is still the same


@pytest.mark.parametrize("most", [2, 3, 20])
def test_charts_beyond_the_limit_are_thinned_evenly(tmp_path: Path, most: int) -> None:
    for number in range(50, 50 * 400 + 1, 50):
        (tmp_path / f"training_step_{number:06d}.png").touch()
        thin_charts(tmp_path, most)
    left = sorted(numbered_charts(tmp_path))
    assert len(left) == most and (left[0], left[-1]) == (50, 20_000)
    gaps = [later - earlier for earlier, later in itertools.pairwise(left)]
    assert max(gaps[:-1], default=0) <= 2.5 * min(gaps[:-1], default=1)
    assert len(chart_files.thinned(list(range(50, 5_000_001, 50)), 500)) == 500  # a hundred thousand at once


def test_redrawing_a_long_run_thins_its_intervals_too(tmp_path: Path, metrics: Metrics) -> None:
    calls = map(metrics, range(7, 60))  # a record that starts late because its beginning was lost
    write_store(tmp_path, calls, config={"viz_interval": 1, "keep_charts": 6})
    with StoreReader(tmp_path / "run.db") as store:
        steps = chart_files.numbered_steps(Viewer(store))
    assert len(steps) == 6 and (steps[0], steps[-1]) == (8, 60)
    with StoreReader(write_store(tmp_path / "empty") / "run.db") as store:
        assert chart_files.numbered_steps(Viewer(store)) == []
