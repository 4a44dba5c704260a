import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.viz.conftest import Metrics, start_python, write_store
from viz.record.reader import COLUMNS, StoreReader
from viz.record.schema import rows_of
from viz.record.writer import StoreWriter


def test_a_row_is_read_as_it_was_written(tmp_path: Path, metrics: Metrics) -> None:
    given = metrics(7, rank=1, loss=2.5)
    about = {"config": {"seed": 1}, "versions": {"torch": "2.13"}, "tokenizer": b"\0spm"}
    writer = StoreWriter(tmp_path / "run.db", about)
    writer.add_rows(rows_of(given, "in", "out"))
    writer.close()
    with StoreReader(tmp_path / "run.db") as store:
        columns, run = store.columns(rank=1), store.run()
        (document,), (sample,) = store.documents(7), store.text_samples()
    assert tuple(columns) == COLUMNS
    assert {name: values.tolist() for name, values in columns.items()} == {
        "steps": [7], **{name: [given[name]] for name in COLUMNS[1:]}
    }  # fmt: skip
    assert document["token_ids"].tolist() == given["token_ids"]
    assert document["token_ranks"].tolist() == given["token_ranks"].tolist()
    np.testing.assert_allclose(document["token_losses"], given["token_losses"], rtol=5e-4, atol=1e-7)
    for name in ("shard", "row", "text_hash", "document_bytes"):
        assert document[name] == given[name]
    assert (sample["input"], sample["output"], sample["accuracy"], sample["rank"]) == ("in", "out", 0.25, 1)
    assert run == run | about | {"ended": None} and run["started"] == pytest.approx(time.time(), abs=60)


def test_a_thousand_steps_take_less_than_two_megabytes_in_one_file(tmp_path: Path, metrics: Metrics) -> None:
    write_store(tmp_path, map(metrics, range(1000)))
    assert [path.name for path in tmp_path.iterdir()] == ["run.db"]
    assert (tmp_path / "run.db").stat().st_size < 2_000_000


def test_numbers_that_are_not_finite_and_odd_text(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "run.db", {})
    for step, loss in enumerate((float("nan"), float("inf"), 1.0)):
        writer.add_rows(rows_of({"step": step, "loss": loss}))
    writer.add_rows(rows_of({"step": 0, "prompt": "a\0b"}, "\ud800", "😀"))
    writer.close()
    with StoreReader(tmp_path / "run.db") as store:
        columns, (sample,) = store.columns(), store.text_samples()
    np.testing.assert_array_equal(columns["loss"], [np.nan, np.inf, 1.0])
    np.testing.assert_array_equal(columns["tokens"], [np.nan] * 3)
    assert columns["source"].tolist() == ["", "", ""]
    assert (sample["prompt"], sample["input"], sample["output"]) == ("a\0b", "?", "😀")


def test_a_reader_sees_the_run_grow(tmp_path: Path) -> None:
    """Rows are committed without a flush, and another process sees them."""
    count = (
        "import sys, time; from pathlib import Path; from viz.record.reader import StoreReader\n"
        "store = StoreReader(Path(sys.argv[1])); until = time.monotonic() + 1.5; seen = []\n"
        "print('ready', flush=True)\n"
        "while time.monotonic() < until: seen.append(len(store.columns()['steps'])); time.sleep(0.01)\n"
        "print(len(set(seen)))"
    )
    writer = StoreWriter(tmp_path / "run.db", {})
    with start_python("-c", count, tmp_path / "run.db") as reader:
        assert reader.stdout.readline() == "ready\n"
        for step in range(300):
            writer.add_rows(rows_of({"step": step, "loss": 1.0}))
            time.sleep(0.003)
        different_counts = int(reader.communicate(timeout=20)[0])
    writer.close()
    assert different_counts >= 3


def test_a_rewind_deletes_rows_but_never_events(filled: Path) -> None:
    writer = StoreWriter(filled / "run.db", {}, resume=True)
    writer.add("events", {"time": 1.0, "step": 19, "kind": "spike", "detail": "loss 40"})
    writer.add("evaluations", {"step": 15, "split": "held_out", "source": "", "loss": 3.0, "tokens": 100})
    for step, document in ((19, 3), (19, 18), (9, 8), (4, 3)):
        row = {"step": step, "document": document, "loss": 2.0, "accuracy": 0.5, "token_losses": [1.0, 3.0]}
        writer.add("probes", row)
    writer.rewind(10)
    with StoreReader(filled / "run.db") as store:
        assert store.columns()["steps"].tolist() == list(range(10))
        assert [store.documents(step) for step in (10, 19)] == [[], []]
        assert [sample["step"] for sample in store.text_samples()] == [0]
        assert [event["kind"] for event in store.events()] == ["spike"]
        assert [(row["document"], row["step"]) for row in store.probes()] == [(3, 4), (8, 9)]
        assert store.probes()[0]["token_losses"].tolist() == [1.0, 3.0]
        assert store.evaluations(20) == []
    writer.add_rows(rows_of({"step": 10, "loss": 1.0}))
    writer.close()


def test_resuming_keeps_the_identity_of_the_run_and_clears_its_end(filled: Path) -> None:
    writer = StoreWriter(filled / "run.db", {}, resume=True)
    writer.update_run(ended=5.0, outcome="interrupted")
    writer.close()
    with StoreReader(filled / "run.db") as store:
        before = store.run()
    assert before["outcome"] == "interrupted"
    write_store(filled, resume=True, run_id="other", started=1.0, device="cuda:0")
    with StoreReader(filled / "run.db") as store:
        assert store.run() == before | {"device": "cuda:0", "ended": None, "outcome": None}


def test_a_new_run_never_overwrites_an_old_one(filled: Path) -> None:
    before = (filled / "run.db").read_bytes()
    with pytest.raises(FileExistsError, match="there is a run already"):
        StoreWriter(filled / "run.db", {})
    assert (filled / "run.db").read_bytes() == before


def test_a_store_that_can_not_be_created_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown column 'gpu' of run"):
        StoreWriter(tmp_path / "run.db", {"gpu": 1})
    with pytest.raises(OSError, match="the store can't be written"):
        StoreWriter(tmp_path / "missing" / "run.db", {})
    assert list(tmp_path.iterdir()) == []


def test_the_write_ahead_log_exists_only_during_the_run(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "run.db", {})
    writer.flush()
    assert (tmp_path / "run.db-wal").exists()
    writer.close()
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["run.db"]
    (tmp_path / "run.db").chmod(0o444)
    with StoreReader(tmp_path / "run.db") as store:
        assert store.run()["note"] == ""


def test_upkeep_repeats_until_nothing_is_left_and_rows_are_committed_in_between(tmp_path: Path) -> None:
    """Each round deletes one step, of those on disk by then, before anything that is queued later."""
    writer = StoreWriter(tmp_path / "run.db", {})
    seen: list[int] = []

    def delete_first(fetch: Callable[..., list[tuple[Any, ...]]]) -> tuple[tuple[str, tuple[Any, ...]], ...]:
        ((first,),) = fetch("SELECT min(step) FROM steps WHERE step < ?", (3,))
        seen.append(fetch("SELECT count(*) FROM steps")[0][0])
        return () if first is None else (("DELETE FROM steps WHERE step = ?", (first,)),)

    gate = threading.Event()
    writer.after_commit(gate.wait)
    for step in range(5):
        writer.add_rows(rows_of({"step": step, "loss": 1.0}))
    writer.keep_up(delete_first)
    writer.add_rows(rows_of({"step": 5, "loss": 1.0}))
    gate.set()
    writer.close()
    assert seen == [5, 5, 4, 3]  # one row more, then one less each time
    with StoreReader(tmp_path / "run.db") as store:
        assert store.columns()["steps"].tolist() == [3, 4, 5]
