"""Power loss: everything that a checkpoint depends on is on disk before it has its name.

The calls of a real run are recorded and their order is checked; what no sync had reached is deleted before a resume.
"""

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults import Call, Fault, Outcome, warm
from tests.runs.conftest import SMALL, STEPS, table
from tests.runs.test_resume import equal_runs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD and /proc")

DONE, INTERVAL = 20, 10
FLAGS = f"--steps {DONE} --checkpoint-interval {INTERVAL} --viz-interval 1000".split()


def run(folder: Path, corpus: Path, fault: Fault | None = None) -> Outcome:
    folder.mkdir()
    done = warm().run(*SMALL, *FLAGS, "--dataset", corpus, folder=folder, fault=fault, records=True)
    assert done.code == (0 if fault is None else -9) and bool(done.landed) == bool(fault), done.err
    return done


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Call, ...]]:
    """The folder of a run with two checkpoints, and every call that changed a file in it."""
    folder = tmp_path_factory.mktemp("power") / "whole"
    return folder, run(folder, corpus).calls


def named(calls: Sequence[Call], step: int) -> Call:
    """The rename that gives a checkpoint its name."""
    (call,) = (c for c in calls if c.operation == "rename" and c.to.endswith(f"checkpoint_step_{step}.bin"))
    return call


def is_synced(path: str, since: int, until: int, calls: Sequence[Call]) -> bool:
    """Whether a sync of `path` began after `since` and ended before `until`."""
    return any(c.operation == "sync" and c.path == path and since < c.began and c.ended < until for c in calls)


def disorder(calls: Sequence[Call], folder: Path, step: int) -> list[str]:
    """What is wrong with the order in which the checkpoint after `step` documents was written."""
    name = named(calls, step)
    calls = [call for call in calls if call.process == name.process]
    writes = [c for c in calls if c.operation == "write" and c.path == name.path]
    digest = name.to + ".sha256"
    digests = [c for c in calls if c.operation == "rename" and c.to == digest and c.ended < name.began]
    found = []
    if not writes or not is_synced(name.path, max(c.ended for c in writes), name.began, calls):
        found.append("the state is not on disk when it gets its name")
    if any(c.ended > name.began for c in writes):
        found.append("the state is written after it has its name")
    if not digests:
        found.append("the digest has no name when the state gets one")
    else:
        last = digests[-1]
        lines = [c for c in calls if c.operation == "write" and c.path == last.path and c.began < last.began]
        if not lines or not is_synced(last.path, max(c.ended for c in lines), last.began, calls):
            found.append("the digest is not on disk when it gets its name")
        if not is_synced(str(folder / "checkpoints"), last.ended, name.began, calls):
            found.append("the digest's name is not on disk when the state gets one")
        if writes and last.began < max(c.ended for c in writes):
            found.append("the digest has its name before the state is written")
    if not is_synced(str(folder / "checkpoints"), name.ended, 1 << 60, calls):
        found.append("the state's name never gets on disk")
    return found


def test_data_before_names(whole: tuple[Path, tuple[Call, ...]]) -> None:
    folder, calls = whole
    for step in (INTERVAL, DONE):
        assert not disorder(calls, folder, step)
    # The first checkpoint's name is on disk before the second has one, so at each moment one of them is safe.
    first, second = named(calls, INTERVAL), named(calls, DONE)
    assert is_synced(str(folder / "checkpoints"), first.ended, second.began, calls)


@pytest.mark.parametrize(
    ("without", "says"),
    [
        (("sync", ".bin.[pid].tmp"), "the state is not on disk"),
        (("sync", ".sha256.[pid].tmp"), "the digest is not on disk"),
        (("rename", ".sha256"), "the digest has no name"),
        (("sync", "checkpoints"), "name never gets on disk"),
    ],
)
def test_a_missing_call_is_detected(whole: tuple[Path, tuple[Call, ...]], without: tuple[str, str], says: str) -> None:
    """Controls: the calls of the same run without one kind of call."""
    folder, calls = whole
    operation, end = without

    def is_left_out(call: Call) -> bool:
        return call.operation == operation and (call.to or call.path).endswith(end.replace("[pid]", str(call.process)))

    doctored = [call for call in calls if not is_left_out(call)]
    assert len(doctored) < len(calls)
    assert any(says in line for line in disorder(doctored, folder, DONE))


@pytest.mark.parametrize(
    ("end", "says"),
    [
        (".bin.[pid].tmp", "the state is not on disk"),
        (".sha256.[pid].tmp", "the digest is not on disk"),
    ],
)
def test_a_late_sync_is_detected(whole: tuple[Path, tuple[Call, ...]], end: str, says: str) -> None:
    """Controls: the calls of the same run, with a sync after the rename that it must precede."""
    folder, calls = whole
    doctored = [
        replace(call, began=call.began + (1 << 40), ended=call.ended + (1 << 40))
        if call.operation == "sync" and call.path.endswith(end.replace("[pid]", str(call.process)))
        else call
        for call in calls
    ]
    assert doctored != list(calls)
    assert any(says in line for line in disorder(doctored, folder, DONE))


def reached(calls: Sequence[Call], path: str, until: int) -> int:
    """The size up to which a growing file is on disk; nothing else of it survives a power cut."""
    files = [c for c in calls if c.path == path]
    synced = 0
    for sync in (c for c in files if c.operation == "sync" and c.ended < until):
        written = [c for c in files if c.operation == "write" and c.ended < sync.began]
        synced = max([synced, *(c.offset + c.size for c in written)])
    return synced


def cut_power(
    folder: Path, calls: Sequence[Call], at: Call, *, forget: Callable[[Call], bool] = lambda c: False
) -> int:
    """Delete from the store what was not on disk when `at` began. Returns how many bytes of its log that is.

    Calls that match `forget` count as never made.
    """
    viz = folder / "training_viz"
    log = viz / "run.db-wal"
    kept = [call for call in calls if call.process == at.process and not forget(call)]
    database = [c for c in kept if c.path == str(viz / "run.db") and c.operation == "write" and c.ended < at.began]
    assert is_synced(str(viz / "run.db"), max(c.ended for c in database), at.began, kept)
    size, safe = log.stat().st_size, reached(kept, str(log), at.began)
    os.truncate(log, safe)
    (viz / "run.db-shm").unlink(missing_ok=True)  # shared memory, which is never on disk
    return size - safe


def rows(folder: Path) -> list[int]:
    # From a copy: opening and closing the store would remove the log.
    look = folder / "look"
    shutil.copytree(folder / "training_viz", look, ignore=shutil.ignore_patterns("*.png"))
    found = [row[0] for row in table(look, STEPS)]
    shutil.rmtree(look)
    return found


@pytest.mark.parametrize("number", [1, 2])
def test_rows_before_names(whole: tuple[Path, tuple[Call, ...]], corpus: Path, tmp_path: Path, number: int) -> None:
    """Killed right after the checkpoint gets its name, with everything unsynced lost: its rows are there."""
    folder, step = tmp_path / "cut", number * INTERVAL
    place = "checkpoints/checkpoint_step_*.bin"
    done = run(folder, corpus, Fault("rename", place, number, when="after"))
    cut_power(folder, done.calls, named(done.calls, step))
    assert rows(folder)[:step] == list(range(step))
    again = warm().run("--resume", folder=folder)
    assert again.code == 0, again.err
    equal_runs(whole[0], folder, DONE)


def test_missing_rows_are_detected(corpus: Path, tmp_path: Path) -> None:
    """Control: without the syncs of the store's log since the previous checkpoint, its rows are gone."""
    folder = tmp_path / "cut"
    place = "checkpoints/checkpoint_step_*.bin"
    done = run(folder, corpus, Fault("rename", place, 2, when="after"))
    first, second = named(done.calls, INTERVAL), named(done.calls, DONE)

    def forget(call: Call) -> bool:
        return call.operation == "sync" and call.path.endswith("run.db-wal") and call.ended > first.began

    assert cut_power(folder, done.calls, second, forget=forget) > 0
    assert rows(folder) != list(range(DONE))
