"""Disks that fail: each k-th write, sync and rename until a run succeeds; read-only folders; a full disk."""

import errno
import itertools
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults import (
    Fault,
    Outcome,
    Warm,
    count_complete_files,
    has_sound_store,
    load_checkpoints,
    one_line,
    warm,
)
from tests.runs.conftest import DOCUMENTS, SMALL, STEPS, start, table, wait_until
from tests.runs.test_resume import equal_runs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD and /proc")

DONE = 4
FLAGS = f"--steps {DONE} --checkpoint-interval 2 --viz-interval 2 --display-samples 2".split()
CHECKPOINTS = "checkpoints/*checkpoint_step_*"
STORE = "training_viz/run.db*"
PICTURES = "training_viz/.*.tmp"
MOST = 1000  # more calls of one kind than a run of four steps makes


class Runs:
    """A run without a fault, and others like it with one."""

    def __init__(self, warm: Warm, corpus: Path, folder: Path) -> None:
        self.warm, self._corpus = warm, corpus
        self.whole = folder / "whole"
        self.whole.mkdir()
        done = self.start(self.whole)
        assert done.code == 0 and not done.left, done.err

    def start(self, folder: Path, fault: Fault | None = None) -> Outcome:
        return self.warm.run(*SMALL, *FLAGS, "--dataset", self._corpus, folder=folder, fault=fault)


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(warm(), corpus, tmp_path_factory.mktemp("disks"))


def nothing_unfinished(folder: Path) -> None:
    assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


def check_what_is_left(runs: Runs, folder: Path) -> tuple[list[int], int]:
    """Check that all checkpoints load and that the rows below them equal those of the whole run. Returns the steps of
    the checkpoints and the number of rows."""
    viz = folder / "training_viz"
    steps = load_checkpoints(folder / "checkpoints")
    rows = 0
    if has_sound_store(viz):
        kept = table(viz, STEPS)
        rows = len(kept)
        assert kept == table(runs.whole / "training_viz", STEPS)[:rows]
        assert table(viz, DOCUMENTS) == table(runs.whole / "training_viz", DOCUMENTS)[:rows]
    assert rows >= max(steps, default=0)
    count_complete_files(viz)
    return steps, rows


def finish(runs: Runs, folder: Path, steps: list[int]) -> None:
    """Without the fault, resume from the newest checkpoint or start again: the result equals a run without faults."""
    again = runs.warm.run("--resume", folder=folder) if steps else runs.start(folder)
    assert again.code == 0 and not again.left, again.err
    equal_runs(runs.whole, folder, DONE)
    nothing_unfinished(folder)


def saving_fails(runs: Runs, folder: Path, fault: Fault) -> bool:
    """A run with a fault in the files of a checkpoint or the store. Returns whether the fault happened."""
    folder.mkdir()
    done = runs.start(folder, fault)
    assert not done.left
    if done.code == 0:
        # No fault, or only cleaning up failed: everything is complete.
        assert not done.err and has_sound_store(folder / "training_viz")
        equal_runs(runs.whole, folder, DONE)
    else:
        assert done.landed, f"the fault did not land: {fault}\n{done.err}"
        line = one_line(done, 5)
        assert "Errno" in line
        nothing_unfinished(folder)
        steps, _ = check_what_is_left(runs, folder)
        finish(runs, folder, steps)
    return bool(done.landed)


def pictures_fail(runs: Runs, folder: Path, fault: Fault) -> bool:
    """A run with a fault in the files of an image or a JSON file. Returns whether the fault happened."""
    folder.mkdir()
    done = runs.start(folder, fault)
    assert done.code == 0 and not done.err and not done.left, done.err
    equal_runs(runs.whole, folder, DONE)
    nothing_unfinished(folder)
    viz = folder / "training_viz"
    whole = count_complete_files(viz)
    if done.landed:
        told = table(viz, "SELECT detail FROM events WHERE kind LIKE 'drawing%'")
        assert told and told[0][0] in done.out
    else:
        assert whole == 6
    return bool(done.landed)


KINDS = {
    "checkpoint": (saving_fails, CHECKPOINTS, ("write", "sync", "rename", "create")),
    "folder": (saving_fails, "checkpoints", ("sync",)),
    "store": (saving_fails, STORE, ("write", "sync", "truncate", "create")),
    "picture": (pictures_fail, PICTURES, ("write", "rename", "create")),
}
MANY = [("checkpoint", "write"), ("store", "write")]


@pytest.mark.parametrize(
    ("kind", "operation", "at", "error", "forever"),
    [
        ("checkpoint", "write", 40, errno.ENOSPC, False),
        ("checkpoint", "sync", 3, errno.EIO, True),
        ("store", "write", 20, errno.ENOSPC, True),
        ("picture", "rename", 2, errno.EIO, False),
    ],
)
def test_one_of_each(runs: Runs, tmp_path: Path, kind: str, operation: str, at: int, error: int, forever: bool) -> None:
    fails, places, _ = KINDS[kind]
    assert fails(runs, tmp_path / "run", Fault(operation, places, at, error, forever=forever))


def landed_in_turn(runs: Runs, tmp_path: Path, kind: str, faults: Sequence[Fault]) -> int:
    """Run with each k-th call failing, until a run succeeds; `faults` take turns. Returns how many happened."""
    fails, landed = KINDS[kind][0], 0
    for at, fault in enumerate(itertools.cycle(faults), start=1):
        folder = tmp_path / str(at)
        if not fails(runs, folder, replace(fault, at=at)):
            break
        landed += 1
        assert landed < MOST
        shutil.rmtree(folder)  # they are hundreds
    shutil.rmtree(folder)
    assert landed
    print(f"{kind}, {faults[0].operations}: {landed} faults landed")
    return landed


def kinds_of(operation: str, kind: str, *errors: int) -> list[Fault]:
    return [
        Fault(operation, KINDS[kind][1], error=error, forever=forever) for error in errors for forever in (False, True)
    ]


@pytest.mark.full
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
@pytest.mark.parametrize(
    ("kind", "operation"),
    [(kind, operation) for kind in KINDS for operation in KINDS[kind][2] if (kind, operation) not in MANY],
)
def test_each_in_turn(runs: Runs, tmp_path: Path, kind: str, operation: str, error: int) -> None:
    kinds = kinds_of(operation, kind, error)
    # A failed image costs a whole run each time, and `forever` makes no difference: there the kinds take turns.
    for faults in [kinds] if kind == "picture" else [[fault] for fault in kinds]:
        landed_in_turn(runs, tmp_path, kind, faults)


@pytest.mark.full
@pytest.mark.parametrize(("kind", "operation"), MANY)
def test_each_of_many_in_turn(runs: Runs, tmp_path: Path, kind: str, operation: str) -> None:
    """These are hundreds of similar calls, so the kinds of failure take turns."""
    assert landed_in_turn(runs, tmp_path, kind, kinds_of(operation, kind, errno.ENOSPC, errno.EIO)) > 20


def test_a_read_only_folder_is_refused(runs: Runs, tmp_path: Path) -> None:
    """Root may write anywhere except to a read-only file system."""
    fault = Fault("create,open,write,rename,link,unlink,truncate", "*", error=errno.EROFS, forever=True)
    done = runs.start(tmp_path, fault)
    assert done.landed and not done.left
    assert "Read-only file system" in one_line(done, 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["checkpoints", pytest.param("training_viz", marks=pytest.mark.full)])
def test_a_folder_that_turns_read_only(runs: Runs, tmp_path: Path, folder: str) -> None:
    """In the middle of a run and for good, as Linux does when a disk fails."""
    places = {"checkpoints": ("create,rename", CHECKPOINTS, 6), "training_viz": ("write", STORE, 8)}
    operations, place, at = places[folder]
    done = runs.start(tmp_path, Fault(operations, place, at, errno.EROFS, forever=True))
    assert done.landed and not done.left
    one_line(done, 5)
    nothing_unfinished(tmp_path)
    steps, _ = check_what_is_left(runs, tmp_path)
    finish(runs, tmp_path, steps)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting needs root: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    """Use all free space."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC


@pytest.mark.full
def test_a_disk_that_is_really_full(runs: Runs, corpus: Path, small_disk: Path) -> None:
    whole = small_disk.with_name("whole")
    whole.mkdir()
    flags = [*SMALL, "--dataset", corpus, "--repeat", "--checkpoint-interval", 100, "--display-samples", 50]
    (small_disk / "taken").write_bytes(bytes(1))
    process = start([*flags, "--steps", 3000], small_disk)
    wait_until(lambda: list(small_disk.glob("checkpoints/*.bin")), process)
    fill(small_disk / "taken")
    _, error = process.communicate(timeout=120)
    assert process.returncode == 5 and error.startswith("train_slimpajama.py: ") and error.count("\n") == 1, error
    nothing_unfinished(small_disk)
    steps = load_checkpoints(small_disk / "checkpoints")
    assert steps and has_sound_store(small_disk / "training_viz")
    (small_disk / "taken").unlink()
    done = steps[-1] + 20
    for folder, words in ((small_disk, ["--resume"]), (whole, flags)):
        again = runs.warm.run(*words, "--steps", done, folder=folder)
        assert again.code == 0, again.err
    equal_runs(whole, small_disk, done)


@pytest.mark.parametrize("kind", ["checkpoint", pytest.param("store", marks=pytest.mark.full)])
def test_a_fault_can_miss(runs: Runs, tmp_path: Path, kind: str) -> None:
    """Control: a fault beyond the last call does not happen, which is how the loops above end."""
    fails, places, operations = KINDS[kind]
    assert not fails(runs, tmp_path / "run", Fault(operations[1], places, MOST, errno.EIO))
