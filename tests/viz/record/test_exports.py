import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.viz.conftest import Metrics
from viz.record.exports import Exporter
from viz.record.reader import COLUMNS, StoreReader
from viz.record.schema import rows_of
from viz.record.writer import StoreWriter

NAMES = ("metrics_history.json", "text_samples.json", "run.json")


def parse(path: Path) -> Any:
    """Strictly: Python's own parser accepts NaN and Infinity, a browser's does not."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in {path.name}")

    return json.loads(path.read_bytes(), parse_constant=refuse)


def export(folder: Path, exporter: Exporter | None = None) -> list[Any]:
    """Export and parse the three files: history, samples, run."""
    with StoreReader(folder / "run.db") as store:
        (exporter or Exporter()).export(store, store.columns(), folder)
    return [parse(folder / name) for name in NAMES]


def test_the_history_has_its_keys_in_order_and_equal_lengths(filled: Path) -> None:
    history = export(filled)[0]
    assert tuple(history) == COLUMNS
    assert list(history)[:5] == ["steps", "loss", "accuracy", "throughput", "learning_rate"]
    assert {len(values) for values in history.values()} == {20}
    assert history["steps"] == list(range(20))
    assert history["source"][:2] == ["python-code", "python-docs"]
    assert history["throughput"][0] == 5123.46 and history["bytes"][0] == 1_234_567
    assert history["learning_rate"][:3] == [1e-6, 1e-6, 2e-6]
    with StoreReader(filled / "run.db") as store:
        np.testing.assert_allclose(history["loss"], store.columns()["loss"], rtol=5e-6)


def test_non_finite_values_are_null_everywhere(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "run.db", {"config": {"rate": math.nan, "deep": [{"x": math.inf}]}})
    for step, value in enumerate((math.nan, math.inf, -math.inf)):
        writer.add_rows(rows_of({"step": step, "loss": value, "accuracy": value, "gradient_norm": value}, "in", "out"))
    writer.close()
    history, samples, run = export(tmp_path)
    assert history["loss"] == history["gradient_norm"] == history["tokens"] == [None] * 3
    assert [sample["accuracy"] for sample in samples] == [None] * 3
    assert run["config"] == {"rate": None, "deep": [{"x": None}]}


def test_the_mfu_covers_all_documents_and_all_seconds(tmp_path: Path) -> None:
    flops = {"per_token": 100, "per_token_squared": 2, "peak_per_second": 1e4}
    writer = StoreWriter(tmp_path / "run.db", {"flops": flops})
    assert export(tmp_path)[2]["mfu"] is None  # no step yet
    for step, (tokens, seconds) in enumerate(((10, 1.0), (30, 2.0))):
        writer.add_rows(rows_of({"step": step, "loss": 1.0, "tokens": tokens, "seconds": seconds}))
    writer.close()
    assert export(tmp_path)[2]["mfu"] == pytest.approx((100 * 40 + 2 * (100 + 900)) / (3.0 * 1e4))


def test_samples_contain_the_continuation_or_the_error(tmp_path: Path) -> None:
    common = {"step": 0, "prompt": "p", "reference": "said"}
    writer = StoreWriter(tmp_path / "run.db", {})
    writer.add_rows(rows_of({**common, "loss": 1.0, "accuracy": 0.5}, "in", "own"))
    writer.add_rows(rows_of({**common, "error": "no memory"}, "in", ""))
    writer.close()
    assert export(tmp_path)[1] == [
        {**common, "input": "in", "output": "own", "accuracy": 0.5, "source": None},
        {**common, "input": "in", "output": "", "accuracy": None, "source": None, "error": "no memory"},
    ]


def test_run_json_describes_the_run(tmp_path: Path) -> None:
    about = {"run_id": "r1", "config": {"seed": 7}, "versions": {"torch": "2.13"}, "source": "x"}
    writer = StoreWriter(tmp_path / "run.db", {**about, "started": 1_700_000_000.0, "tokenizer": b"spm"})
    history, samples, run = export(tmp_path)
    assert history == {name: [] for name in COLUMNS} and samples == []
    assert run == run | about | {"json_through_step": None, "ended": None, "outcome": None}
    assert run["started"] == "2023-11-14T22:13:20+00:00" and "tokenizer" not in run
    writer.add_rows(rows_of({"step": 41, "loss": 1.0}))
    writer.update_run(ended=1_700_000_060.0, outcome="done")
    writer.close()
    run = export(tmp_path)[2]
    assert (run["json_through_step"], run["ended"], run["outcome"]) == (41, "2023-11-14T22:14:20+00:00", "done")


def test_an_export_in_parts_equals_an_export_at_once(tmp_path: Path, metrics: Metrics) -> None:
    exporter = Exporter()
    writer = StoreWriter(tmp_path / "run.db", {})
    export(tmp_path, exporter)
    for step in range(30):
        writer.add_rows(rows_of(metrics(step), "in" if step % 4 == 0 else "", ""))
        if step in (0, 10, 11):
            writer.flush()
            export(tmp_path, exporter)
    writer.close()
    assert len(export(tmp_path, exporter)[0]["steps"]) == 30
    in_parts = [(tmp_path / name).read_bytes() for name in NAMES]
    export(tmp_path)
    assert [(tmp_path / name).read_bytes() for name in NAMES] == in_parts


def test_the_second_export_of_a_long_run_formats_only_new_rows(filled: Path) -> None:
    count = 200_000
    random = np.random.default_rng(0)
    columns = {name: random.random(count) for name in COLUMNS}
    columns |= {"steps": np.arange(count), "source": np.full(count, "python-code", dtype=object)}
    exporter, seconds = Exporter(), []
    with StoreReader(filled / "run.db") as store:
        for _ in range(2):
            began = time.perf_counter()
            exporter.export(store, columns, filled)
            seconds.append(time.perf_counter() - began)
    assert seconds[1] < seconds[0] / 3


@pytest.mark.parametrize("name", NAMES[:2])
def test_a_file_that_can_not_be_written_does_not_prevent_the_others(filled: Path, name: str) -> None:
    (filled / name).mkdir()
    with pytest.raises(OSError, match=name):
        export(filled)
    assert not list(filled.glob("*.tmp")) and not list(filled.glob("*.part"))
    assert parse(filled / "run.json")["json_through_step"] == 19
    assert all(parse(filled / other) for other in NAMES if other != name)
