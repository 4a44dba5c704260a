"""The store while another program holds it, and when its disk fails: no row is lost, none is written twice."""

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.viz.holding import hold
from viz.record.schema import rows_of
from viz.record.writer import StoreReader, StoreWriter

Metrics = Callable[..., dict[str, Any]]
ROOT = Path(__file__).parents[3]
BLOCKING = [("rollback", "reader"), ("rollback", "writer"), ("log", "writer")]  # beside a log readers block nobody


def choose_journal(monkeypatch: pytest.MonkeyPatch, journal: str) -> None:
    monkeypatch.setattr("viz.record.writer.is_on_network", lambda _: journal == "rollback")


def steps_in(path: Path) -> list[int]:
    with StoreReader(path) as store:
        steps: list[int] = store.columns()["steps"].tolist()
    return steps


def record_while_held(
    path: Path, metrics: Metrics, seconds: float, kind: str, said: list[str]
) -> tuple[StoreWriter, int, float]:
    """Record a document every 10 ms while the store is held: (the writer, how many, the longest call in seconds)."""
    writer, step, longest = StoreWriter(path, {}, say=said.append), 0, 0.0
    for step in range(10):
        writer.add_rows(rows_of(metrics(step)))
    writer.flush()
    with hold(path, kind) as holder:
        seen, began = holder.begins()
        assert seen == 10
        while time.monotonic() < began + seconds:
            step += 1
            row = rows_of(metrics(step))
            asked = time.monotonic()
            writer.add_rows(row)
            longest = max(longest, time.monotonic() - asked)
            time.sleep(0.01)
        assert holder.lets_go()[0] == 10
    return writer, step + 1, longest


@pytest.mark.parametrize(("journal", "kind"), [*BLOCKING, ("log", "reader")])
@pytest.mark.parametrize("seconds", [3, pytest.param(20, marks=pytest.mark.full)])
def test_recording_never_waits_for_a_program_that_holds_the_store(
    tmp_path: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch, journal: str, kind: str, seconds: int
) -> None:
    choose_journal(monkeypatch, journal)
    said: list[str] = []
    path = tmp_path / "run.db"
    writer, count, longest = record_while_held(path, metrics, seconds, kind, said)
    writer.flush()
    assert steps_in(path) == list(range(count))
    writer.close()
    assert count > 20 * seconds  # it went on at its pace
    assert longest < 0.5
    assert said == []  # nobody waited
    with StoreReader(path) as store:
        assert all(len(store.documents(step)[0]["token_ids"]) == 256 for step in range(count))


@pytest.mark.parametrize(("journal", "kind"), BLOCKING)
def test_a_flush_waits_and_says_so_once(
    tmp_path: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch, journal: str, kind: str
) -> None:
    choose_journal(monkeypatch, journal)
    monkeypatch.setattr(StoreWriter, "PATIENCE", 0.5)
    said: list[str] = []
    path = tmp_path / "run.db"
    writer = StoreWriter(path, {}, say=said.append)
    with hold(path, kind) as holder:
        holder.begins()
        writer.add_rows(rows_of(metrics(0)))
        flushes = [threading.Thread(target=writer.flush) for _ in range(2)]
        for flush in flushes:
            flush.start()
        time.sleep(1.5)
        assert all(flush.is_alive() for flush in flushes)
        holder.lets_go()
        for flush in flushes:
            flush.join(20)
            assert not flush.is_alive()
        assert steps_in(path) == [0]
        writer.close()
    (line,) = said
    assert f"waiting for another program that holds {path}" in line
    assert "\n" not in line
    if Path("/proc/locks").exists():
        assert f"process {holder.process.pid}, python" in line


def test_a_close_waits_and_a_second_holder_is_said_again(
    tmp_path: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose_journal(monkeypatch, "rollback")
    monkeypatch.setattr(StoreWriter, "PATIENCE", 0.3)
    said: list[str] = []
    path = tmp_path / "run.db"
    writer = StoreWriter(path, {}, say=said.append)
    for step, ask in enumerate((writer.flush, writer.close)):
        with hold(path, "reader") as holder:
            holder.begins()
            writer.add_rows(rows_of(metrics(step)))
            waiting = threading.Thread(target=ask)
            waiting.start()
            time.sleep(1)
            assert waiting.is_alive()
            holder.lets_go()
            waiting.join(20)
            assert not waiting.is_alive()
        assert steps_in(path) == list(range(step + 1))
    assert len(said) == 2


def test_a_held_store_is_opened_once_it_is_let_go(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StoreWriter, "PATIENCE", 0.3)
    said: list[str] = []
    with hold(filled / "run.db", "reader") as holder:  # it also bars the way from a rollback journal to a log
        holder.begins()
        threading.Timer(1.5, holder.lets_go).start()
        began = time.monotonic()
        writer = StoreWriter(filled / "run.db", {"device": "cuda:0"}, resume=True, say=said.append)
        assert time.monotonic() - began > 1
        writer.close()
    assert len(said) == 1
    with StoreReader(filled / "run.db") as store:
        assert store.run()["device"] == "cuda:0"


def test_a_rewind_beside_a_holder_returns_at_once_and_comes_before_later_rows(
    tmp_path: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose_journal(monkeypatch, "rollback")
    path = tmp_path / "run.db"
    writer = StoreWriter(path, {})
    for step in range(20):
        writer.add_rows(rows_of(metrics(step)))
    writer.flush()
    with hold(path, "reader") as holder:
        holder.begins()
        for step in range(20, 25):
            writer.add_rows(rows_of(metrics(step)))
        began = time.monotonic()
        writer.rewind(10)
        assert time.monotonic() - began < 1.5
        for step in range(10, 15):
            writer.add_rows(rows_of(metrics(step, loss=77.0)))
        assert holder.lets_go()[0] == 20
    writer.close()
    with StoreReader(path) as store:
        columns = store.columns()
    assert columns["steps"].tolist() == list(range(15))
    assert [loss == 77 for loss in columns["loss"]] == [False] * 10 + [True] * 5


def test_memory_is_bounded_and_beyond_that_a_call_waits_and_loses_nothing(
    tmp_path: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose_journal(monkeypatch, "rollback")
    monkeypatch.setattr(StoreWriter, "WAITING_BYTES", 100_000)
    monkeypatch.setattr(StoreWriter, "QUEUE_CALLS", 20)
    monkeypatch.setattr(StoreWriter, "COMMIT_CALLS", 10)
    monkeypatch.setattr(StoreWriter, "PATIENCE", 0.3)
    said: list[str] = []
    writer = StoreWriter(tmp_path / "run.db", {}, say=said.append)
    recorded = []

    def record() -> None:
        for step in range(300):
            writer.add_rows(rows_of(metrics(step)))
            recorded.append(step)
            time.sleep(0.002)

    with hold(tmp_path / "run.db", "reader") as holder:
        holder.begins()
        recording = threading.Thread(target=record)
        recording.start()
        time.sleep(3)
        assert 20 < len(recorded) < 200
        assert len(said) == 1
        holder.lets_go()
        recording.join(20)
    writer.close()
    assert steps_in(tmp_path / "run.db") == list(range(300))


FAIL_AGAIN_AND_AGAIN = """
import resource, sys
from pathlib import Path
import viz.record.writer
from viz.record.schema import rows_of
from viz.record.writer import StoreWriter

path, journal = Path(sys.argv[1]), sys.argv[2]
viz.record.writer.is_on_network = lambda _: journal == "rollback"
def allow(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
writer, step = StoreWriter(path, {}), 0
def record():
    # What a call was given when it raised is not given again.
    global step
    step += 1
    writer.add_rows(rows_of({"step": step - 1, "loss": 1.0, "token_ids": list(range(step % 500))}))
    if step % 40 == 39:
        asked.append(step)
        writer.after_commit(lambda step=step: called.append(step))
def note():
    noted.append(step)
    writer.add("events", {"time": 0.0, "step": step, "kind": "k", "detail": f"{step} " + 2000 * "x"})
asked, called, noted = [], [], []
for failure in range(30):
    writer.flush()
    allow(max(p.stat().st_size for p in path.parent.glob("run.db*") if "shm" not in p.name) + 1700 * failure)
    try:
        while True:
            record()
            if step % 3 == 0:
                note()
            if step % 50 == failure:
                writer.flush()
    except OSError as error:
        assert "the store can't be written" in str(error)
    try:
        note()  # kept, though it raises
        raise SystemExit("no OSError")
    except OSError:
        pass
    try:
        writer.recover()
        raise SystemExit("recovered on a full disk")
    except OSError:
        pass
    allow(resource.RLIM_INFINITY)
    writer.recover()
    record()
writer.close()
assert called == asked
print(step, *noted)
"""


@pytest.mark.parametrize("journal", ["log", "rollback"])
def test_a_disk_that_fails_anywhere_loses_nothing_and_doubles_nothing(tmp_path: Path, journal: str) -> None:
    command = [sys.executable, "-c", FAIL_AGAIN_AND_AGAIN, str(tmp_path / "run.db"), journal]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    step, *noted = map(int, done.stdout.split())
    assert [path.name for path in tmp_path.iterdir()] == ["run.db"]
    assert steps_in(tmp_path / "run.db") == list(range(step))
    with StoreReader(tmp_path / "run.db") as store:
        assert [int(event["detail"].split()[0]) for event in store.events()] == noted
        assert all(len(store.documents(k)[0]["token_ids"]) == (k + 1) % 500 for k in range(step))
    assert len(noted) > 30
    database = sqlite3.connect(tmp_path / "run.db")
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB. Only root may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    with suppress(FileNotFoundError):
        if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
            yield folder
            subprocess.run(["umount", str(folder)], check=True)
            return
    pytest.skip("needs the right to mount a file system")


@pytest.mark.parametrize("journal", ["log", "rollback"])
def test_a_full_disk_that_is_given_room(
    small_disk: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch, journal: str
) -> None:
    choose_journal(monkeypatch, journal)
    (small_disk / "other").write_bytes(bytes(500_000))
    writer, step = StoreWriter(small_disk / "run.db", {}), 0
    with pytest.raises(OSError, match="the store can't be written"):
        for step in range(1000):
            writer.add_rows(rows_of(metrics(step)))
            if step % 20 == 0:
                writer.flush()
    with pytest.raises(OSError, match="the store can't be written"):
        writer.recover()
    (small_disk / "other").unlink()
    writer.recover()
    assert steps_in(small_disk / "run.db") == list(range(step + 1))
    writer.add_rows(rows_of(metrics(step + 1)))
    writer.close()
    assert steps_in(small_disk / "run.db") == list(range(step + 2))


def test_a_failed_recovery_is_no_obstacle_to_closing(small_disk: Path, metrics: Metrics) -> None:
    writer = StoreWriter(small_disk / "run.db", {})
    for step in range(10):
        writer.add_rows(rows_of(metrics(step)))
    writer.flush()
    with pytest.raises(OSError, match="the store can't be written"):
        for step in range(10, 2000):
            writer.add_rows(rows_of(metrics(step)))
            if step % 100 == 0:
                writer.flush()
    for ask in (writer.recover, writer.recover, writer.close):
        with pytest.raises(OSError, match="the store can't be written"):
            ask()
    # What was committed is whole; a copy is opened, for the log can't be undone where the disk is full.
    kept = steps_in_copy(small_disk)
    assert kept == list(range(len(kept)))
    assert len(kept) >= 10


def steps_in_copy(folder: Path) -> list[int]:
    copy = folder.with_name("copy")
    copy.mkdir()
    for path in folder.glob("run.db*"):
        (copy / path.name).write_bytes(path.read_bytes())
    return steps_in(copy / "run.db")


def test_a_defect_is_no_failure_of_the_disk(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "run.db", {})
    writer.add_rows(rows_of({"step": 0, "loss": 1.0}))
    writer.add_rows(rows_of({"step": 0, "loss": 2.0}))
    for ask in (writer.flush, writer.recover, writer.close):
        with pytest.raises(RuntimeError, match="UNIQUE"):
            ask()


def test_a_store_that_could_not_be_made_does_not_stand_in_the_way(tmp_path: Path) -> None:
    make = (
        "import resource, sys; from pathlib import Path; from viz.record.writer import StoreWriter\n"
        "path = Path(sys.argv[1])\n"
        "for size in (0, 5_000, 20_000):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))\n"
        "    try: StoreWriter(path, {})\n"
        "    except OSError as error: print(path.exists(), error)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "StoreWriter(path, {}).close()\n"
    )
    command = [sys.executable, "-c", make, str(tmp_path / "run.db")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("True [Errno 5] the store can't be written") == 3
    assert steps_in(tmp_path / "run.db") == []


KILLED_IN_A_COMMIT = """
import os, sys
from pathlib import Path
import viz.record.writer
from viz.record.schema import rows_of
from viz.record.writer import StoreWriter

path, journal = Path(sys.argv[1]), sys.argv[2]
viz.record.writer.is_on_network = lambda _: journal == "rollback"
writer = StoreWriter(path, {})
for step in range(10):
    writer.add_rows(rows_of({"step": step, "loss": 1.0}))
writer.flush()
# A transaction larger than SQLite's memory is half in the file when its last statement kills the process.
writer._db._db.execute("PRAGMA cache_size = 10")
writer._db._db.create_function("die", 0, lambda: os.kill(os.getpid(), 9))
rows = [("UPDATE steps SET loss = 99", ())]
rows += [("INSERT INTO events (step, detail) VALUES (?, ?)", (k, 5000 * "x")) for k in range(200)]
writer._put((*rows, ("SELECT die()", ())))
writer.flush()
"""


@pytest.mark.parametrize("journal", ["log", "rollback"])
@pytest.mark.parametrize("opener", ["reader", "writer"])
def test_a_store_of_a_killed_trainer_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal: str, opener: str
) -> None:
    choose_journal(monkeypatch, journal)
    path = tmp_path / "run.db"
    killed = subprocess.run([sys.executable, "-c", KILLED_IN_A_COMMIT, str(path), journal], cwd=ROOT, check=False)
    assert killed.returncode == -9
    assert sum(found.stat().st_size for found in tmp_path.glob("run.db*")) > 1_000_000  # it was hit in the middle
    if opener == "writer":
        writer = StoreWriter(path, {}, resume=True)
        writer.rewind(5)
        writer.add_rows(rows_of({"step": 5, "loss": 2.0}))
        writer.close()
        assert [found.name for found in tmp_path.iterdir()] == ["run.db"]
    with StoreReader(path) as store:
        columns, events = store.columns(), store.events()
    assert columns["loss"].tolist() == ([1.0] * 5 + [2.0] if opener == "writer" else [1.0] * 10)
    assert events == []
