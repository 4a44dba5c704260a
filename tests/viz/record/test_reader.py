import json
from pathlib import Path

import pytest

from tests.viz.conftest import execute
from viz.record.reader import StoreReader
from viz.record.schema import TABLES, rows_of
from viz.record.writer import StoreWriter


@pytest.mark.parametrize("name", ["run 50%#1?.db", "läuft.db"])
def test_any_file_name_can_be_read(tmp_path: Path, name: str) -> None:
    StoreWriter(tmp_path / name, {"source": "x"}).close()
    with StoreReader(tmp_path / name) as store:
        assert store.run()["source"] == "x"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_files_that_are_not_stores_are_refused_with_one_line(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    with pytest.raises(FileNotFoundError, match=r"there is no run store.*run\.db"):
        StoreReader(path)
    with pytest.raises(FileNotFoundError):
        StoreWriter(path, {}, resume=True)
    assert not path.exists()
    path.write_bytes(b"hello" * 1000)
    with pytest.raises(ValueError, match="can't be read as a run store"):
        StoreReader(path)
    path.unlink()
    execute(path, "CREATE TABLE t (x)")
    with pytest.raises(ValueError, match="not a run store"):
        StoreReader(path)


def test_a_store_of_a_newer_version_is_refused_by_reader_and_writer(filled: Path) -> None:
    execute(filled / "run.db", "PRAGMA user_version = 99")
    for open_it in (lambda: StoreReader(filled / "run.db"), lambda: StoreWriter(filled / "run.db", {}, resume=True)):
        with pytest.raises(ValueError, match="store version 99, newer than the supported 5: update"):
            open_it()


def test_a_store_of_version_1_can_be_read_but_not_resumed(filled: Path) -> None:
    path = filled / "run.db"
    execute(
        path,
        "DROP TABLE evaluations",
        "CREATE TABLE evaluations (step INTEGER, split TEXT, loss REAL, accuracy REAL, tokens INTEGER, bytes INTEGER, "
        "seconds REAL, PRIMARY KEY (step, split)) WITHOUT ROWID",
        "INSERT INTO evaluations VALUES (9, 'validation', 3.5, 0.25, 1000, 4000, 0.5)",
        "INSERT INTO evaluations VALUES (19, 'validation', NULL, 0.5, 1000, 0, 0.25)",
        "DROP TABLE probes",
        "ALTER TABLE run DROP COLUMN recipe",
        "PRAGMA user_version = 1",
    )
    before = path.read_bytes()
    with StoreReader(path) as store:
        assert [(row["step"], row["loss"]) for row in store.evaluations(20)] == [(9, 3.5), (19, None)]
        assert store.run()["recipe"] == {} and store.probes() == []
    with pytest.raises(ValueError, match="record of an earlier version: it can be viewed"):
        StoreWriter(path, {}, resume=True)
    assert path.read_bytes() == before


def test_evaluations_of_whole_splits_are_in_order(filled: Path) -> None:
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


def test_rows_can_be_read_from_a_step_on(filled: Path) -> None:
    with StoreReader(filled / "run.db") as store:
        assert store.columns(5, 8)["steps"].tolist() == [5, 6, 7] and len(store.columns(20)["steps"]) == 0
        assert [sample["step"] for sample in store.text_samples(after_id=1)] == [10]
        assert store.latest_text_sample(10) == store.text_samples()[0]
        assert store.latest_text_sample(0) is None


def test_the_sample_of_a_chart_is_the_newest_with_a_reference(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "run.db", {})
    writer.add_rows(rows_of({"step": 0, "prompt": "p", "reference": "said"}, "in", "out"))
    writer.add_rows(rows_of({"step": 5, "prompt": "Once upon"}, "", "a time"))
    writer.close()
    with StoreReader(tmp_path / "run.db") as store:
        sample = store.latest_text_sample(10)
    assert sample is not None and sample["step"] == 0


def test_users_can_read_the_tables_with_plain_sqlite(filled: Path) -> None:
    path = filled / "run.db"
    assert {name for (name,) in execute(path, "SELECT name FROM sqlite_master WHERE type = 'table'")} == set(TABLES)
    assert execute(path, "SELECT count(*), min(step), max(step) FROM steps") == [(20, 0, 19)]
    assert json.loads(execute(path, "SELECT config FROM run")[0][0] or "{}") == {}
