"""A run is followed from before its first row until after its end, without leaving a trace."""

import fcntl
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.viz.conftest import Metrics, add_calls, execute, run_python, write_store
from tests.viz.small_tokenizers import JSON, MODELS
from viz.page.live_run import LiveRun, NoRun
from viz.record.reader import StoreReader
from viz.record.writer import StoreWriter
from viz.stats.series import Averages


def live_run(folder: Path) -> LiveRun:
    """A run whose every `reading` sees the newest rows, so that tests don't wait a quarter of a second."""
    return LiveRun(folder, fresh_seconds=0)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold the lock as `trainer/run/folders.py` does during a run."""
    with (folder / ".run.lock").open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def add(writer: StoreWriter, metrics: Metrics, steps: range, **changed: Any) -> None:
    add_calls(writer, (metrics(step, **changed) for step in steps))


def look(live: LiveRun) -> None:
    with live.reading():
        pass


def steps_of(live: LiveRun) -> list[int]:
    look(live)
    found: list[int] = live.series["steps"].tolist()
    return found


def state_without_run(live: LiveRun) -> str:
    with pytest.raises(NoRun) as caught:
        look(live)
    assert "\n" not in str(caught.value)
    return caught.value.state


def listing(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """For every file and folder: modification time, size and content."""
    paths = [folder, *sorted(folder.rglob("*"))]
    stats = [(path.stat(), path.read_bytes() if path.is_file() else b"") for path in paths]
    return {str(path): (s.st_mtime_ns, s.st_size, content) for path, (s, content) in zip(paths, stats, strict=True)}


def test_a_run_from_before_its_start_to_after_its_end(tmp_path: Path, metrics: Metrics) -> None:
    record = tmp_path / "out" / "training_viz"
    live = live_run(tmp_path / "out")
    assert state_without_run(live) == "waiting"
    record.mkdir(parents=True)
    assert state_without_run(live) == "waiting"
    (record / "run.db").touch()  # SQLite creates the file before it commits the tables
    assert state_without_run(live) == "waiting"
    with lock(record):
        writer = StoreWriter(record / "run.db", {"run_id": "r1"})
        assert steps_of(live) == [] and live.state == "running" and live.record == record
        edition = live.edition
        add(writer, metrics, range(1))
        assert steps_of(live) == [0]
        add(writer, metrics, range(1, 7))
        assert steps_of(live) == list(range(7)) and live.state == "running"
    assert steps_of(live) == list(range(7)) and live.state == "stopped"  # no process writes it, and it has no end
    with lock(record):
        writer.update_run(ended=time.time(), outcome="done")
        writer.close()
    look(live)
    assert live.state == "ended" and live.run["outcome"] == "done" and live.edition == edition


def test_what_was_just_read_is_not_read_again(tmp_path: Path, metrics: Metrics) -> None:
    writer = StoreWriter(tmp_path / "run.db", {})
    live = LiveRun(tmp_path, fresh_seconds=0.3)
    assert steps_of(live) == []
    add(writer, metrics, range(2))
    assert steps_of(live) == []
    time.sleep(0.35)
    assert steps_of(live) == [0, 1]
    writer.close()


def test_another_run_in_the_same_folder_is_a_new_edition(tmp_path: Path, metrics: Metrics) -> None:
    """As in the trainer: the old run moves to `earlier/`, and the new one takes its place."""
    live = live_run(write_store(tmp_path, (metrics(step, loss=2.0) for step in range(8)), run_id="first"))
    assert steps_of(live) == list(range(8))
    edition = live.edition
    (tmp_path / "earlier" / "first").mkdir(parents=True)
    shutil.move(tmp_path / "run.db", tmp_path / "earlier" / "first" / "run.db")
    write_store(tmp_path, (metrics(step, loss=5.0) for step in range(3)), run_id="second")
    assert steps_of(live) == [0, 1, 2]
    assert live.edition > edition and live.run["run_id"] == "second"
    assert live.series["loss"].tolist() == [5.0] * 3
    assert live.averages(7).loss.values().tolist() == pytest.approx([5.0] * 3)


def test_a_rollback_is_read_again_as_a_new_edition(tmp_path: Path, metrics: Metrics) -> None:
    writer = StoreWriter(tmp_path / "run.db", {})
    add(writer, metrics, range(30), loss=2.0)
    live = live_run(tmp_path)
    assert steps_of(live) == list(range(30))
    edition, averages = live.edition, live.averages(5)
    writer.rewind(10)
    writer.add("events", {"time": 0.0, "step": 10, "kind": "roll-back", "detail": "to step 10"})
    add(writer, metrics, range(10, 50), loss=3.0)
    assert steps_of(live) == list(range(50))
    assert live.series["loss"].tolist() == [2.0] * 10 + [3.0] * 40
    assert live.edition > edition
    assert live.averages(5) is not averages
    np.testing.assert_array_equal(live.averages(5).loss.values(), averages_at_once(tmp_path, 5).loss.values())
    edition = live.edition
    writer.add("events", {"time": 0.0, "step": 50, "kind": "checkpoint", "detail": ""})
    add(writer, metrics, range(50, 51), loss=3.0)
    assert steps_of(live) == list(range(51)) and live.edition == edition  # continuing is no new edition
    writer.close()


def test_control_without_the_event_the_old_rows_would_stay(tmp_path: Path, metrics: Metrics) -> None:
    """Rows that were written again look like the old ones; only the event reveals the rollback."""
    writer = StoreWriter(tmp_path / "run.db", {})
    add(writer, metrics, range(8), loss=2.0)
    live = live_run(tmp_path)
    steps_of(live)
    writer.rewind(4)
    add(writer, metrics, range(4, 10), loss=3.0)
    assert steps_of(live) == list(range(10)) and live.series["loss"].tolist() == [2.0] * 8 + [3.0] * 2
    writer.add("events", {"time": 0.0, "step": 4, "kind": "resume", "detail": ""})
    writer.flush()
    steps_of(live)
    assert live.series["loss"].tolist() == [2.0] * 4 + [3.0] * 6
    writer.close()


def test_a_deleted_store_is_gone_until_there_is_a_new_one(filled: Path, metrics: Metrics) -> None:
    live = live_run(filled)
    assert len(steps_of(live)) == 20
    edition = live.edition
    (filled / "run.db").unlink()
    assert state_without_run(live) == "gone"
    assert state_without_run(live) == "gone"
    assert not live.series.size
    write_store(filled, map(metrics, range(4)), run_id="r2")
    assert steps_of(live) == [0, 1, 2, 3] and live.run["run_id"] == "r2"
    assert live.edition > edition


def foreign(path: Path) -> None:
    path.unlink()
    execute(path, "CREATE TABLE t (x)")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b"no database" * 1000),
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        lambda path: execute(path, "PRAGMA user_version = 99"),
        lambda path: execute(path, "DELETE FROM run"),
        foreign,
    ],
    ids=["text", "cut", "newer", "no row", "foreign"],
)
def test_an_unreadable_file_is_one_line_until_it_is_replaced(filled: Path, spoil: Callable[[Path], None]) -> None:
    valid = (filled / "run.db").read_bytes()
    followed = live_run(filled)
    assert steps_of(followed) == list(range(20))
    spoil(filled / "run.db")
    for live in (followed, live_run(filled)):
        assert state_without_run(live) == "unreadable"
        assert state_without_run(live) == "unreadable"
    (filled / "run.db").write_bytes(valid)
    assert steps_of(followed) == list(range(20))


def test_nothing_is_written_to_the_folder_of_an_ended_run(filled: Path) -> None:
    (filled / "training_step_000020.png").write_bytes(b"a picture")
    before = listing(filled)
    live = live_run(filled)
    for _ in range(3):
        steps_of(live)
        live.averages(33)
        assert live.state == "stopped" and live.speller is None
    assert listing(filled) == before


def test_nothing_is_written_to_the_folder_of_a_running_one(tmp_path: Path, metrics: Metrics) -> None:
    write_store(tmp_path, map(metrics, range(30)))
    with lock(tmp_path):
        writer = StoreWriter(tmp_path / "run.db", {}, resume=True)
        add(writer, metrics, range(30, 50))
        before = listing(tmp_path)
        live = live_run(tmp_path)
        assert steps_of(live) == list(range(50)) and live.state == "running"
        after = listing(tmp_path)
        # The log's index is memory shared by everyone who has the store open; each reader has a word in it.
        assert {Path(name).name for name in before if before[name] != after[name]} <= {"run.db-shm"}
        assert before.keys() == after.keys()
        writer.close()


KILLED = """
import os, sys
from pathlib import Path
from viz.record.writer import StoreWriter
writer = StoreWriter(Path(sys.argv[1]) / "run.db", {"run_id": "killed"})
for step in range(7):
    writer.add("steps", {"step": step, "rank": 0, "loss": 1.0})
writer.flush()
os._exit(9)
"""


def test_the_log_of_a_killed_run_is_read_and_left_alone(tmp_path: Path) -> None:
    run_python("-c", KILLED, tmp_path, check=False)
    assert (tmp_path / "run.db-wal").stat().st_size > 0
    before = listing(tmp_path)
    live = live_run(tmp_path)
    assert steps_of(live) == list(range(7)) and live.state == "stopped"
    after = listing(tmp_path)
    for name in ("run.db", "run.db-wal"):
        assert after[str(tmp_path / name)] == before[str(tmp_path / name)]
    assert after.keys() == before.keys()


def test_a_read_only_copy(filled: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    copy = tmp_path_factory.mktemp("copy") / "record"
    shutil.copytree(filled, copy)
    for path in (copy / "run.db", copy):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        live = live_run(copy)
        assert steps_of(live) == list(range(20)) and live.state == "stopped"
        assert [path.name for path in copy.iterdir()] == ["run.db"]
    finally:
        copy.chmod(0o755)


def averages_at_once(folder: Path, window: int) -> Averages:
    made = Averages(window)
    with StoreReader(folder / "run.db") as store:
        made.extend(store.columns())
    return made


def test_incremental_averages_equal_those_computed_at_once(tmp_path: Path, metrics: Metrics) -> None:
    writer, live, begin, windows = StoreWriter(tmp_path / "run.db", {}), live_run(tmp_path), 0, (1, 200, 1000)
    for count in (3, 1, 40, 200):  # the windows are first requested when there are rows already
        part = range(begin, begin + count)
        add_calls(writer, (metrics(step) | ({"loss": float("nan")} if step % 9 == 8 else {}) for step in part))
        begin += count
        look(live)
        found = {window: live.averages(window) for window in windows}
    for window in windows:
        expected = averages_at_once(tmp_path, window)
        for name in ("loss", "loss_error", "accuracy", "gradient_norm", "tokens_per_second", "waited_share"):
            values = (getattr(found[window], name).values(), getattr(expected, name).values())
            np.testing.assert_allclose(*values, rtol=1e-9, atol=1e-12, err_msg=name)
    assert live.averages(200) is live.series.averages
    writer.close()


def test_the_speller_belongs_to_the_current_run(tmp_path: Path) -> None:
    live, spelled = live_run(tmp_path), []
    for tokenizer in (JSON, MODELS["ours"], None):
        (tmp_path / "run.db").unlink(missing_ok=True)
        StoreWriter(tmp_path / "run.db", {"tokenizer": tokenizer}).close()
        look(live)
        spelled.append(None if live.speller is None else live.speller.text([87]))
    assert spelled[0] == "x" and spelled[1] not in ("x", None) and spelled[2] is None


def test_a_run_that_ends_while_its_page_is_open_leaves_one_file(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "run.db", {})
    add_calls(writer, ({"step": step, "loss": 2.0} for step in range(50)))
    live, ended = live_run(tmp_path), threading.Event()

    def ask() -> None:
        while not ended.is_set():
            look(live)

    pages = [threading.Thread(target=ask) for _ in range(4)]
    for page in pages:
        page.start()
    time.sleep(0.3)
    writer.close()
    ended.set()
    for page in pages:
        page.join()
    assert [path.name for path in tmp_path.iterdir()] == ["run.db"]
    assert len(steps_of(live)) == 50


def test_control_an_open_reader_keeps_the_log_but_no_rows_in_it(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "run.db", {})
    add_calls(writer, [{"step": 0, "loss": 2.0}])
    with StoreReader(tmp_path / "run.db"):
        writer.close()
        assert (tmp_path / "run.db-wal").exists()
        (tmp_path / "copy").mkdir()
        shutil.copy(tmp_path / "run.db", tmp_path / "copy" / "run.db")  # without the log
    assert steps_of(live_run(tmp_path / "copy")) == [0]
