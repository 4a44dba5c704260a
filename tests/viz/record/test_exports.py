import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from viz.record.exports import Exporter
from viz.record.schema import rows_of
from viz.record.writer import COLUMNS, StoreReader, StoreWriter

Metrics = Callable[..., dict[str, Any]]


def parse(path: Path) -> Any:
    """Strictly: Python's own parser takes NaN and Infinity, a browser's does not."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in {path.name}")

    return json.loads(path.read_bytes(), parse_constant=refuse)


def export(folder: Path, exporter: Exporter | None = None) -> None:
    with StoreReader(folder / "run.db") as store:
        (exporter or Exporter()).export(store, store.columns(), folder)


def test_the_history_has_its_keys_in_order_and_equal_lengths(filled: Path) -> None:
    export(filled)
    history = parse(filled / "metrics_history.json")
    assert tuple(history) == COLUMNS
    assert list(history)[:5] == ["steps", "loss", "accuracy", "throughput", "learning_rate"]
    assert {len(values) for values in history.values()} == {20}
    assert history["steps"] == list(range(20))
    assert history["source"][:2] == ["python-code", "python-docs"]
    assert history["throughput"][0] == 5123.46
    assert history["bytes"][0] == 1_234_567
    assert history["learning_rate"][:3] == [1e-6, 1e-6, 2e-6]
    with StoreReader(filled / "run.db") as store:
        np.testing.assert_allclose(history["loss"], store.columns()["loss"], rtol=5e-6)


def test_what_is_not_finite_is_null_everywhere(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "run.db", {"config": {"rate": math.nan, "deep": [{"x": math.inf}]}})
    for step, value in enumerate((math.nan, math.inf, -math.inf)):
        given = {"step": step, "loss": value, "accuracy": value, "gradient_norm": value}
        writer.add_rows(rows_of(given, "in", "out"))
    writer.close()
    export(tmp_path)
    history = parse(tmp_path / "metrics_history.json")
    assert history["loss"] == history["gradient_norm"] == history["tokens"] == [None] * 3
    assert [sample["accuracy"] for sample in parse(tmp_path / "text_samples.json")] == [None] * 3
    assert parse(tmp_path / "run.json")["config"] == {"rate": None, "deep": [{"x": None}]}


def test_the_mfu_is_that_of_all_documents_over_all_seconds(tmp_path: Path) -> None:
    flops = {"per_token": 100, "per_token_squared": 2, "peak_per_second": 1e4}
    writer = StoreWriter(tmp_path / "run.db", {"flops": flops})
    for step, (tokens, seconds) in enumerate(((10, 1.0), (30, 2.0))):
        writer.add_rows(rows_of({"step": step, "loss": 1.0, "tokens": tokens, "seconds": seconds}))
    writer.close()
    export(tmp_path)
    assert parse(tmp_path / "run.json")["mfu"] == pytest.approx((100 * 40 + 2 * (100 + 900)) / (3.0 * 1e4))


def test_the_mfu_of_no_step_is_none(tmp_path: Path) -> None:
    StoreWriter(tmp_path / "run.db", {"flops": {"per_token": 1, "per_token_squared": 1, "peak_per_second": 1}}).close()
    export(tmp_path)
    assert parse(tmp_path / "run.json")["mfu"] is None


def test_samples_keep_what_the_model_said_and_say_when_it_failed(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "run.db", {})
    writer.add_rows(rows_of({"step": 0, "loss": 1.0, "accuracy": 0.5, "prompt": "p", "reference": "said"}, "in", "own"))
    writer.add_rows(rows_of({"step": 0, "prompt": "p", "reference": "said", "error": "no memory"}, "in", ""))
    writer.close()
    export(tmp_path)
    assert parse(tmp_path / "text_samples.json") == [
        {
            "step": 0,
            "input": "in",
            "output": "own",
            "accuracy": 0.5,
            "prompt": "p",
            "reference": "said",
            "source": None,
        },
        {"step": 0, "input": "in", "output": "", "accuracy": None, "prompt": "p", "reference": "said", "source": None}
        | {"error": "no memory"},
    ]


def test_run_json_describes_the_run(tmp_path: Path) -> None:
    described = {
        "run_id": "r1",
        "config": {"seed": 7},
        "versions": {"torch": "2.13"},
        "source": "x",
        "started": 1_700_000_000.0,
        "tokenizer": b"spm",
    }
    writer = StoreWriter(tmp_path / "run.db", described)
    export(tmp_path)
    run = parse(tmp_path / "run.json")
    assert run["json_through_step"] is None
    assert (run["started"], run["ended"], run["outcome"]) == ("2023-11-14T22:13:20+00:00", None, None)
    assert (run["config"], run["versions"]) == ({"seed": 7}, {"torch": "2.13"})
    assert "tokenizer" not in run
    writer.add_rows(rows_of({"step": 41, "loss": 1.0}))
    writer.update_run(ended=1_700_000_060.0, outcome="done")
    writer.close()
    export(tmp_path)
    run = parse(tmp_path / "run.json")
    assert (run["json_through_step"], run["ended"], run["outcome"]) == (41, "2023-11-14T22:14:20+00:00", "done")


def test_an_empty_run_exports_empty_arrays(tmp_path: Path) -> None:
    StoreWriter(tmp_path / "run.db", {}).close()
    export(tmp_path)
    assert parse(tmp_path / "metrics_history.json") == {name: [] for name in COLUMNS}
    assert parse(tmp_path / "text_samples.json") == []


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
    names = ("metrics_history.json", "text_samples.json", "run.json")
    export(tmp_path, exporter)
    in_parts = [(tmp_path / name).read_bytes() for name in names]
    export(tmp_path)
    assert [(tmp_path / name).read_bytes() for name in names] == in_parts
    assert len(parse(tmp_path / "metrics_history.json")["steps"]) == 30


def test_the_second_export_of_a_long_run_formats_only_what_is_new(filled: Path) -> None:
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


def test_a_folder_that_can_not_be_written_raises_and_leaves_nothing(filled: Path, tmp_path: Path) -> None:
    (filled / "text_samples.json").mkdir()
    with pytest.raises(OSError, match="text_samples"):
        export(filled)
    assert not [path for path in filled.iterdir() if path.name.endswith(".tmp")]


def test_a_file_that_can_not_be_written_does_not_cost_the_others(filled: Path) -> None:
    (filled / "metrics_history.json").mkdir()
    with pytest.raises(OSError, match="metrics_history"):
        export(filled)
    assert parse(filled / "run.json")["json_through_step"] == 19 and parse(filled / "text_samples.json")
