"""The store while another process locks it, and when its disk fails: no row is lost, none is written twice."""

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.viz.conftest import Metrics, add_calls, execute, run_python
from tests.viz.holding import hold
from viz.record.reader import StoreReader
from viz.record.schema import rows_of
from viz.record.writer import StoreWriter, WriterLimits

BLOCKING = [(True, "reader"), (True, "writer"), (False, "writer")]  # with a write-ahead log, readers block nobody
JOURNALS = pytest.mark.parametrize("on_network", [False, True], ids=["log", "rollback"])


def steps_in(path: Path) -> list[int]:
    with StoreReader(path) as store:
        steps: list[int] = store.columns()["steps"].tolist()
    return steps


@pytest.mark.parametrize(("on_network", "kind"), [*BLOCKING, (False, "reader")])
@pytest.mark.parametrize("seconds", [3, pytest.param(20, marks=pytest.mark.full)])
def test_recording_never_waits_for_a_lock(
    tmp_path: Path, metrics: Metrics, on_network: bool, kind: str, seconds: int
) -> None:
    said: list[str] = []
    path, longest, step = tmp_path / "run.db", 0.0, 9
    writer = StoreWriter(path, {}, say=said.append, network_file_system=on_network)
    add_calls(writer, map(metrics, range(10)))
    with hold(path, kind) as holder:
        seen, began = holder.begins()
        while time.monotonic() < began + seconds:
            step += 1
            row = rows_of(metrics(step))
            asked = time.monotonic()
            writer.add_rows(row)
            longest = max(longest, time.monotonic() - asked)
            time.sleep(0.01)
        assert seen == holder.lets_go()[0] == 10
    writer.flush()
    assert steps_in(path) == list(range(step + 1))
    writer.close()
    assert step > 20 * seconds and longest < 0.5
    assert said == []  # no call waited
    with StoreReader(path) as store:
        assert all(len(store.documents(number)[0]["token_ids"]) == 256 for number in range(step + 1))


@pytest.mark.parametrize(("on_network", "kind"), BLOCKING)
def test_flush_and_close_wait_for_the_lock_and_report_each_lock_once(
    tmp_path: Path, metrics: Metrics, on_network: bool, kind: str
) -> None:
    said: list[str] = []
    path, limits = tmp_path / "run.db", WriterLimits(patience=0.5)
    writer = StoreWriter(path, {}, say=said.append, network_file_system=on_network, limits=limits)
    for step, calls in enumerate(([writer.flush, writer.flush], [writer.close])):
        with hold(path, kind) as holder:
            holder.begins()
            writer.add_rows(rows_of(metrics(step)))
            threads = [threading.Thread(target=call) for call in calls]
            for thread in threads:
                thread.start()
            time.sleep(1.5)
            assert all(thread.is_alive() for thread in threads)
            holder.lets_go()
            for thread in threads:
                thread.join(20)
                assert not thread.is_alive()
        assert steps_in(path) == list(range(step + 1)) and writer.times_locked
        assert len(said) == step + 1 and str(path) in said[step] and "\n" not in said[step]
        if Path("/proc/locks").exists():
            assert f"process {holder.process.pid}, python" in said[step]


def test_opening_waits_for_the_lock(filled: Path) -> None:
    said: list[str] = []
    with hold(filled / "run.db", "reader") as holder:  # it also prevents the change from a rollback journal to a log
        holder.begins()
        threading.Timer(1.5, holder.lets_go).start()
        began = time.monotonic()
        options = {"resume": True, "say": said.append, "limits": WriterLimits(patience=0.3)}
        writer = StoreWriter(filled / "run.db", {"device": "cuda:0"}, **options)
        assert time.monotonic() - began > 1
        writer.close()
    assert len(said) == 1
    with StoreReader(filled / "run.db") as store:
        assert store.run()["device"] == "cuda:0"


def test_a_rewind_during_a_lock_returns_at_once_and_precedes_later_rows(tmp_path: Path, metrics: Metrics) -> None:
    path = tmp_path / "run.db"
    writer = StoreWriter(path, {}, network_file_system=True)
    add_calls(writer, map(metrics, range(20)))
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


def test_memory_is_bounded_during_a_lock_and_no_row_is_lost(tmp_path: Path, metrics: Metrics) -> None:
    limits = WriterLimits(waiting_bytes=100_000, queue_calls=20, commit_calls=10, patience=0.3)
    said: list[str] = []
    recorded: list[int] = []
    path = tmp_path / "run.db"
    writer = StoreWriter(path, {}, say=said.append, network_file_system=True, limits=limits)

    def record() -> None:
        for step in range(300):
            writer.add_rows(rows_of(metrics(step)))
            recorded.append(step)
            time.sleep(0.002)

    with hold(path, "reader") as holder:
        holder.begins()
        recording = threading.Thread(target=record)
        recording.start()
        time.sleep(3)
        assert 20 < len(recorded) < 200 and len(said) == 1
        holder.lets_go()
        recording.join(20)
    writer.close()
    assert steps_in(path) == list(range(300))


FAIL_AGAIN_AND_AGAIN = """
import resource, sys
from pathlib import Path
from viz.record.schema import rows_of
from viz.record.writer import StoreWriter

path = Path(sys.argv[1])
def allow(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
writer, step = StoreWriter(path, {}, network_file_system=sys.argv[2] == "True"), 0
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
        note()  # kept, although it raises
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


@JOURNALS
def test_a_disk_that_fails_at_any_point_loses_nothing_and_repeats_nothing(tmp_path: Path, on_network: bool) -> None:
    done = run_python("-c", FAIL_AGAIN_AND_AGAIN, tmp_path / "run.db", on_network, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    step, *noted = map(int, done.stdout.split())
    assert [path.name for path in tmp_path.iterdir()] == ["run.db"]
    assert steps_in(tmp_path / "run.db") == list(range(step))
    with StoreReader(tmp_path / "run.db") as store:
        assert [int(event["detail"].split()[0]) for event in store.events()] == noted
        assert all(len(store.documents(k)[0]["token_ids"]) == (k + 1) % 500 for k in range(step))
    assert len(noted) > 30
    assert execute(tmp_path / "run.db", "PRAGMA integrity_check") == [("ok",)]


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


@JOURNALS
def test_a_full_disk_that_gets_space_again(small_disk: Path, metrics: Metrics, on_network: bool) -> None:
    (small_disk / "other").write_bytes(bytes(500_000))
    writer, step = StoreWriter(small_disk / "run.db", {}, network_file_system=on_network), -1

    def record_until_full() -> None:
        nonlocal step
        with pytest.raises(OSError, match="the store can't be written"):
            while True:
                step += 1
                writer.add_rows(rows_of(metrics(step)))
                if step % 20 == 0:
                    writer.flush()

    record_until_full()
    for _ in range(2):
        with pytest.raises(OSError, match="the store can't be written"):
            writer.recover()
    (small_disk / "other").unlink()
    writer.recover()
    assert steps_in(small_disk / "run.db") == list(range(step + 1))
    recovered = step
    record_until_full()
    with pytest.raises(OSError, match="the store can't be written"):
        writer.close()
    # What was committed is complete. A copy is opened, since a journal can't be rolled back on a full disk.
    copy = small_disk.with_name("copy")
    copy.mkdir()
    for path in small_disk.glob("run.db*"):
        (copy / path.name).write_bytes(path.read_bytes())
    kept = steps_in(copy / "run.db")
    assert kept == list(range(len(kept))) and len(kept) > recovered


def test_a_row_that_breaks_the_schema_is_not_reported_as_a_failing_disk(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "run.db", {})
    writer.add_rows(rows_of({"step": 0, "loss": 1.0}))
    writer.add_rows(rows_of({"step": 0, "loss": 2.0}))
    for call in (writer.flush, writer.recover, writer.close):
        with pytest.raises(RuntimeError, match="UNIQUE"):
            call()


def test_a_store_that_could_not_be_created_can_be_created_later(tmp_path: Path) -> None:
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
    done = run_python("-c", make, tmp_path / "run.db", check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("True [Errno 5] the store can't be written") == 3
    assert steps_in(tmp_path / "run.db") == []


KILLED_IN_A_COMMIT = """
import os, sys
from pathlib import Path
from viz.record.schema import rows_of
from viz.record.writer import StoreWriter

writer = StoreWriter(Path(sys.argv[1]), {}, network_file_system=sys.argv[2] == "True")
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


@JOURNALS
@pytest.mark.parametrize("opener", ["reader", "writer"])
def test_the_store_of_a_killed_trainer_opens_with_every_flushed_row(
    tmp_path: Path, on_network: bool, opener: str
) -> None:
    path = tmp_path / "run.db"
    assert run_python("-c", KILLED_IN_A_COMMIT, path, on_network, check=False).returncode == -9
    assert sum(found.stat().st_size for found in tmp_path.glob("run.db*")) > 1_000_000  # killed in the middle
    if opener == "writer":
        writer = StoreWriter(path, {}, resume=True, network_file_system=on_network)
        writer.rewind(5)
        writer.add_rows(rows_of({"step": 5, "loss": 2.0}))
        writer.close()
        assert [found.name for found in tmp_path.iterdir()] == ["run.db"]
    with StoreReader(path) as store:
        columns, events = store.columns(), store.events()
    assert columns["loss"].tolist() == ([1.0] * 5 + [2.0] if opener == "writer" else [1.0] * 10)
    assert events == []
