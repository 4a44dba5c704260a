import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from viz.record.schema import TABLES, rows_of
from viz.record.writer import COLUMNS, StoreReader, StoreWriter

Metrics = Callable[..., dict[str, Any]]
ROOT = Path(__file__).parents[3]


def test_a_row_comes_back_as_it_was_given(tmp_path: Path, metrics: Metrics) -> None:
    given = metrics(7, rank=1, loss=2.5)
    writer = StoreWriter(
        tmp_path / "run.db", {"config": {"seed": 1}, "versions": {"torch": "2.13"}, "tokenizer": b"\0spm"}
    )
    writer.add_rows(rows_of(given, "in", "out"))
    writer.close()
    with StoreReader(tmp_path / "run.db") as store:
        columns = store.columns(rank=1)
        (document,) = store.documents(7)
        (sample,) = store.text_samples()
        run = store.run()
    assert tuple(columns) == COLUMNS
    for name in set(COLUMNS) - {"steps"}:
        assert columns[name].tolist() == [given[name]], name
    assert columns["steps"].tolist() == [7]
    assert document["token_ids"].tolist() == given["token_ids"]
    assert document["token_ranks"].tolist() == given["token_ranks"].tolist()
    np.testing.assert_allclose(document["token_losses"], given["token_losses"], rtol=5e-4, atol=1e-7)
    assert {name: document[name] for name in ("shard", "row", "text_hash", "document_bytes")} == {
        name: given[name] for name in ("shard", "row", "text_hash", "document_bytes")
    }
    assert (sample["input"], sample["output"], sample["accuracy"], sample["rank"]) == ("in", "out", 0.25, 1)
    assert (run["config"], run["versions"], run["tokenizer"]) == ({"seed": 1}, {"torch": "2.13"}, b"\0spm")
    assert run["started"] == pytest.approx(time.time(), abs=60)
    assert run["ended"] is None


def test_a_thousand_steps_take_less_than_two_megabytes_in_one_file(tmp_path: Path, metrics: Metrics) -> None:
    writer = StoreWriter(tmp_path / "run.db", {})
    for step in range(1000):
        writer.add_rows(rows_of(metrics(step)))
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["run.db"]
    assert (tmp_path / "run.db").stat().st_size < 2_000_000


def test_the_call_of_the_founding_documents() -> None:
    given = {"step": 0, "loss": 2.5, "accuracy": 0.1, "throughput": 35.2, "learning_rate": 1e-6}
    rows = dict(rows_of(given, "in text", "out text"))
    assert rows["steps"] == given | {"rank": 0}
    assert rows["text_samples"] == {"step": 0, "rank": 0, "accuracy": 0.1, "input": "in text", "output": "out text"}


def test_which_rows_a_call_makes(metrics: Metrics) -> None:
    def tables(given: dict[str, Any], *texts: str) -> list[str]:
        return [table for table, _ in rows_of(given, *texts)]

    assert tables(metrics(0)) == ["steps", "documents"]
    assert tables(metrics(0), "", "out") == ["steps", "documents", "text_samples"]
    assert tables({"step": 3, "prompt": ""}) == ["text_samples"]
    assert tables({"step": 3, "error": "no memory"}) == ["text_samples"]
    assert rows_of({"step": 3, "prompt": "p"}, "", "out")[0][1].get("accuracy") is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"step": 0, "los": 1.0}, ["los", "known keys", "learning_rate"]),
        ({"loss": 1.0}, ["no step"]),
        ({"step": 0}, ["nothing to record"]),
        ({"step": 0.5, "loss": 1.0}, ["'step'"]),
        ({"step": 0, "loss": "high"}, ["'loss'", "high"]),
    ],
)
def test_a_call_that_can_not_be_recorded_is_refused_at_once(given: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"step|loss") as refused:
        rows_of(given)
    assert [word for word in words if word not in str(refused.value)] == []


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "run.db", {})
    for step, loss in enumerate((float("nan"), float("inf"), 1.0)):
        writer.add_rows(rows_of({"step": step, "loss": loss}))
    writer.close()
    with StoreReader(tmp_path / "run.db") as store:
        columns = store.columns()
    np.testing.assert_array_equal(columns["loss"], [np.nan, np.inf, 1.0])
    np.testing.assert_array_equal(columns["tokens"], [np.nan] * 3)
    assert columns["source"].tolist() == ["", "", ""]


def test_a_lone_surrogate_and_a_nul_are_kept_as_text(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "run.db", {})
    writer.add_rows(rows_of({"step": 0, "prompt": "a\0b"}, "\ud800", "😀"))
    writer.close()
    with StoreReader(tmp_path / "run.db") as store:
        (sample,) = store.text_samples()
    assert (sample["prompt"], sample["input"], sample["output"]) == ("a\0b", "?", "😀")


def test_a_second_row_for_a_step_is_a_defect(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "run.db", {})
    writer.add_rows(rows_of({"step": 0, "loss": 1.0}))
    writer.add_rows(rows_of({"step": 0, "loss": 2.0, "rank": 1}))
    writer.flush()
    writer.add_rows(rows_of({"step": 0, "loss": 2.0}))
    with pytest.raises(RuntimeError, match=r"UNIQUE.*steps\.step"):
        writer.flush()
    with pytest.raises(RuntimeError):
        writer.add_rows(rows_of({"step": 1, "loss": 2.0}))
    with pytest.raises(RuntimeError):
        writer.close()


def test_a_store_is_read_by_another_process_while_it_is_written(tmp_path: Path) -> None:
    count = (
        "import sys, time; from pathlib import Path; from viz.record.writer import StoreReader\n"
        "store = StoreReader(Path(sys.argv[1])); seen = []\n"
        "print('ready', flush=True)\n"
        "while not seen or seen[-1] < 300: seen.append(len(store.columns()['steps'])); time.sleep(0.01)\n"
        "print(len(set(seen)))"
    )
    writer = StoreWriter(tmp_path / "run.db", {})
    command = [sys.executable, "-c", count, str(tmp_path / "run.db")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        for step in range(300):
            writer.add_rows(rows_of({"step": step, "loss": 1.0}))
            time.sleep(0.003)
        writer.flush()
        different_counts = int(reader.communicate(timeout=20)[0])
    writer.close()
    assert different_counts >= 3  # it saw the run grow


def test_rows_are_committed_without_being_asked(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "run.db", {})
    writer.add_rows(rows_of({"step": 0, "loss": 1.0}))
    with StoreReader(tmp_path / "run.db") as store:
        until = time.monotonic() + 5
        while not len(store.columns()["steps"]):
            assert time.monotonic() < until
            time.sleep(0.01)
    writer.close()


def test_what_was_flushed_survives_a_kill(tmp_path: Path) -> None:
    die = (
        "import os, sys; from pathlib import Path; from viz.record.writer import StoreWriter\n"
        "from viz.record.schema import rows_of\n"
        "writer = StoreWriter(Path(sys.argv[1]), {})\n"
        "for step in range(10): writer.add_rows(rows_of({'step': step, 'loss': 1.0}))\n"
        "writer.flush(); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", die, str(tmp_path / "run.db")], cwd=ROOT, check=False)
    assert killed.returncode == -9
    with StoreReader(tmp_path / "run.db") as store:
        assert store.columns()["steps"].tolist() == list(range(10))


def test_a_rewind_forgets_rows_but_never_events(filled: Path) -> None:
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
    writer.add_rows(rows_of({"step": 10, "loss": 1.0}))  # the place is free again
    writer.close()
    with sqlite3.connect(filled / "run.db") as db:
        assert db.execute("SELECT count(*) FROM evaluations").fetchone() == (0,)
    db.close()


def test_resuming_keeps_the_identity_of_the_run_and_opens_its_end(filled: Path) -> None:
    writer = StoreWriter(filled / "run.db", {}, resume=True)
    writer.update_run(ended=5.0, outcome="interrupted")
    writer.close()
    with StoreReader(filled / "run.db") as store:
        before = store.run()
    assert before["outcome"] == "interrupted"
    writer = StoreWriter(filled / "run.db", {"run_id": "other", "started": 1.0, "device": "cuda:0"}, resume=True)
    writer.close()
    with StoreReader(filled / "run.db") as store:
        assert store.run() == before | {"device": "cuda:0", "ended": None, "outcome": None}


def test_a_new_run_never_writes_over_an_old_one(filled: Path) -> None:
    before = (filled / "run.db").read_bytes()
    with pytest.raises(FileExistsError, match="there is a run already"):
        StoreWriter(filled / "run.db", {})
    assert (filled / "run.db").read_bytes() == before


def test_a_run_that_can_not_be_described_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown column 'gpu' of run"):
        StoreWriter(tmp_path / "run.db", {"gpu": 1})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="the store can't be written"):
        StoreWriter(tmp_path / "missing" / "run.db", {})


def test_the_journal_is_a_log_while_it_is_written_and_gone_after(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "run.db", {})
    writer.flush()
    assert (tmp_path / "run.db-wal").exists()
    writer.close()
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["run.db"]
    (tmp_path / "run.db").chmod(0o444)
    with StoreReader(tmp_path / "run.db") as store:
        assert store.run()["note"] == ""


def test_a_close_beside_a_reader_loses_nothing(filled: Path) -> None:
    writer = StoreWriter(filled / "run.db", {}, resume=True)
    with StoreReader(filled / "run.db") as store:
        store.columns()
        writer.add_rows(rows_of({"step": 20, "loss": 1.0}))
        writer.close()
        assert len(store.columns()["steps"]) == 21


def test_a_full_disk_surfaces_as_oserror_at_the_next_call(tmp_path: Path) -> None:
    fill = (
        "import resource, signal, sys; from pathlib import Path; from viz.record.writer import StoreWriter\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "writer = StoreWriter(Path(sys.argv[1]), {})\n"
        "writer.flush()\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))\n"
        "event = {'time': 0.0, 'step': 0, 'kind': 'k', 'detail': 'x' * 50_000}\n"
        "try:\n"
        "    for _ in range(10): writer.add('events', event)\n"
        "    writer.flush()\n"
        "except OSError as error: print(error)\n"
        "try: writer.close()\n"
        "except OSError as error: print('close', error)\n"
    )
    command = [sys.executable, "-c", fill, str(tmp_path / "run.db")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=30)
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done
    assert "the store can't be written" in lines[0]
    assert "run.db" in lines[0]
    assert lines[1].startswith("close")


def test_upkeep_is_asked_until_there_is_nothing_left_and_rows_come_in_between(tmp_path: Path) -> None:
    """Each time it says goodbye to one step, of those that are on disk by then, before anything that comes later."""
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
    writer.flush()
    writer.close()
    assert seen == [5, 5, 4, 3]  # one more row, one less each time
    with StoreReader(tmp_path / "run.db") as store:
        assert store.columns()["steps"].tolist() == [3, 4, 5]


def test_a_full_queue_makes_the_trainer_wait_and_loses_nothing(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "run.db", {})
    busy, gate = threading.Event(), threading.Event()
    writer.after_commit(lambda: (busy.set(), gate.wait()))
    busy.wait()
    threading.Timer(0.5, gate.set).start()
    began = time.monotonic()
    for step in range(StoreWriter.QUEUE_CALLS + 100):
        writer.add_rows(rows_of({"step": step, "loss": 1.0}))
    assert time.monotonic() - began > 0.2
    writer.close()
    with StoreReader(tmp_path / "run.db") as store:
        assert len(store.columns()["steps"]) == StoreWriter.QUEUE_CALLS + 100


@pytest.mark.parametrize("name", ["run 50%#1?.db", "läuft.db"])
def test_any_file_name_can_be_read(tmp_path: Path, name: str) -> None:
    StoreWriter(tmp_path / name, {"source": "x"}).close()
    with StoreReader(tmp_path / name) as store:
        assert store.run()["source"] == "x"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_is_no_store_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    with pytest.raises(FileNotFoundError, match=r"no run store there.*run\.db"):
        StoreReader(path)
    with pytest.raises(FileNotFoundError):
        StoreWriter(path, {}, resume=True)
    assert not path.exists()
    path.write_bytes(b"hello" * 1000)
    with pytest.raises(ValueError, match="can't be read as a run store"):
        StoreReader(path)
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE t (x)")
    db.close()
    with pytest.raises(ValueError, match="not a run store"):
        StoreReader(path)


def test_a_store_of_a_newer_version_is_refused_by_both(filled: Path) -> None:
    with sqlite3.connect(filled / "run.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    for open_it in (lambda: StoreReader(filled / "run.db"), lambda: StoreWriter(filled / "run.db", {}, resume=True)):
        with pytest.raises(ValueError, match="store version 99, newer than the 5 known here: update"):
            open_it()


def make_version_1(path: Path) -> None:
    """Of a closed store one as version 1 of the schema left it, with two evaluations."""
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE evaluations")
        db.execute(
            "CREATE TABLE evaluations (step INTEGER, split TEXT, loss REAL, accuracy REAL, tokens INTEGER, bytes "
            "INTEGER, seconds REAL, PRIMARY KEY (step, split)) WITHOUT ROWID"
        )
        rows = [(9, "validation", 3.5, 0.25, 1000, 4000, 0.5), (19, "validation", None, 0.5, 1000, 0, 0.25)]
        db.executemany("INSERT INTO evaluations VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        db.execute("DROP TABLE probes")
        db.execute("ALTER TABLE run DROP COLUMN recipe")
        db.execute("PRAGMA user_version = 1")
    db.close()


def test_a_store_of_version_1_is_read_as_it_is_and_not_gone_on_with(filled: Path) -> None:
    path = filled / "run.db"
    make_version_1(path)
    before = path.read_bytes()
    with StoreReader(path) as store:
        assert [(row["step"], row["loss"]) for row in store.evaluations(20)] == [(9, 3.5), (19, None)]
        assert store.run()["recipe"] == {}
        assert store.probes() == []
    with pytest.raises(ValueError, match="record of an earlier version"):
        StoreWriter(path, {}, resume=True)
    assert path.read_bytes() == before


def test_evaluations_of_whole_splits_are_read_in_order(filled: Path) -> None:
    writer = StoreWriter(filled / "run.db", {}, resume=True)
    for step, split, source, loss in (
        (19, "validation", "", 3.0), (9, "validation", "", 4.0), (9, "validation", "code", 5.0), (9, "test", "", 2.0)
    ):  # fmt: skip
        writer.add("evaluations", {"step": step, "split": split, "source": source, "loss": loss})
    writer.close()
    with StoreReader(filled / "run.db") as store:
        found = [(row["split"], row["step"], row["loss"]) for row in store.evaluations(20)]
        assert found == [("test", 9, 2.0), ("validation", 9, 4.0), ("validation", 19, 3.0)]
        assert [row["step"] for row in store.evaluations(19)] == [9, 9]


def test_only_new_rows_are_fetched_on_demand(filled: Path) -> None:
    with StoreReader(filled / "run.db") as store:
        assert store.columns(5, 8)["steps"].tolist() == [5, 6, 7]
        assert len(store.columns(20)["steps"]) == 0
        assert [s["step"] for s in store.text_samples(after_id=1)] == [10]
        assert store.latest_text_sample(10) is not None
        assert store.latest_text_sample(10) == store.text_samples()[0]
        assert store.latest_text_sample(0) is None


def test_the_sample_of_a_chart_is_the_newest_with_a_reference(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "run.db", {})
    writer.add_rows(rows_of({"step": 0, "prompt": "p", "reference": "said"}, "in", "out"))
    writer.add_rows(rows_of({"step": 5, "prompt": "Once upon"}, "", "a time"))
    writer.flush()
    with StoreReader(tmp_path / "run.db") as store:
        sample = store.latest_text_sample(10)
    writer.close()
    assert sample is not None
    assert sample["step"] == 0


def test_users_can_read_the_tables_with_plain_sqlite(filled: Path) -> None:
    db = sqlite3.connect(filled / "run.db")
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert tables == set(TABLES)
    assert db.execute("SELECT count(*), min(step), max(step) FROM steps").fetchone() == (20, 0, 19)
    assert json.loads(db.execute("SELECT config FROM run").fetchone()[0] or "{}") == {}
    db.close()
