"""Disks that fail: the k-th write, fsync and rename for k = 1, 2, … until a run gets through; folders that are
read-only; a disk that is really full."""

import errno
import itertools
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import PROJECT, command_environment
from tests.faults import (
    Fault,
    Outcome,
    Warm,
    one_line,
    pictures_and_json_are_whole,
    store_is_whole,
    warm,
    whole_checkpoints,
)
from tests.runs.conftest import DOCUMENTS, SMALL, STEPS, table
from tests.runs.test_resume import equal_runs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD and /proc")

DONE = 4
FLAGS = f"--steps {DONE} --checkpoint-interval 2 --viz-interval 2 --display-samples 2".split()
CHECKPOINTS = "checkpoints/*checkpoint_step_*"
STORE = "training_viz/run.db*"
PICTURES = "training_viz/.*.tmp"
MOST = 1000  # calls of one kind that a run of four steps may make; beyond it a loop would not end


class Runs:
    """A run that met no fault, and others like it that do."""

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


def what_is_there_is_whole(runs: Runs, folder: Path) -> tuple[list[int], int]:
    """The checkpoints that have their names load, and the rows below them are those of the whole run; their steps, and
    how many rows there are."""
    viz = folder / "training_viz"
    steps = whole_checkpoints(folder / "checkpoints")
    rows = 0
    if store_is_whole(viz):
        kept = table(viz, STEPS)
        rows = len(kept)
        assert kept == table(runs.whole / "training_viz", STEPS)[:rows]
        assert table(viz, DOCUMENTS) == table(runs.whole / "training_viz", DOCUMENTS)[:rows]
    assert rows >= max(steps, default=0)
    pictures_and_json_are_whole(viz)
    return steps, rows


def goes_on(runs: Runs, folder: Path, steps: list[int]) -> None:
    """Without the fault: from the newest checkpoint, or anew, to the end that a run without faults has."""
    again = runs.warm.run("--resume", folder=folder) if steps else runs.start(folder)
    assert again.code == 0 and not again.left, again.err
    equal_runs(runs.whole, folder, DONE)
    nothing_unfinished(folder)


def saving_fails(runs: Runs, folder: Path, fault: Fault) -> bool:
    """A run with a fault of a checkpoint's or the store's files; False once it has got through without meeting it."""
    folder.mkdir()
    done = runs.start(folder, fault)
    assert not done.left
    if done.code == 0:
        # Nothing met, or what failed was no more than tidying up: then everything is there at once.
        assert not done.err and store_is_whole(folder / "training_viz")
        equal_runs(runs.whole, folder, DONE)
    else:
        assert done.landed, f"the fault did not land: {fault}\n{done.err}"
        line = one_line(done, 5)
        assert "Errno" in line
        nothing_unfinished(folder)
        steps, _ = what_is_there_is_whole(runs, folder)
        goes_on(runs, folder, steps)
    return bool(done.landed)


def pictures_fail(runs: Runs, folder: Path, fault: Fault) -> bool:
    """A run with a fault of a picture's or JSON file's; False once it has got through without meeting it."""
    folder.mkdir()
    done = runs.start(folder, fault)
    assert done.code == 0 and not done.err and not done.left, done.err
    equal_runs(runs.whole, folder, DONE)
    nothing_unfinished(folder)
    viz = folder / "training_viz"
    whole = pictures_and_json_are_whole(viz)
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
    """Run with each k-th call failing, until a run gets through; `faults` take turns. How many landed."""
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
    # A picture that fails costs a whole run each time, and nothing hangs on for how long: there they take turns.
    for faults in [kinds] if kind == "picture" else [[fault] for fault in kinds]:
        landed_in_turn(runs, tmp_path, kind, faults)


@pytest.mark.full
@pytest.mark.parametrize(("kind", "operation"), MANY)
def test_each_of_many_in_turn(runs: Runs, tmp_path: Path, kind: str, operation: str) -> None:
    """They are up to hundreds, one much like the next: their kinds of failure take turns."""
    assert landed_in_turn(runs, tmp_path, kind, kinds_of(operation, kind, errno.ENOSPC, errno.EIO)) > 20


def test_a_read_only_folder_is_refused(runs: Runs, tmp_path: Path) -> None:
    """Root may write where nobody may: a file system that is read-only stops root as well."""
    fault = Fault("create,open,write,rename,link,unlink,truncate", "*", error=errno.EROFS, forever=True)
    done = runs.start(tmp_path, fault)
    assert done.landed and not done.left
    assert "Read-only file system" in one_line(done, 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["checkpoints", pytest.param("training_viz", marks=pytest.mark.full)])
def test_a_folder_that_turns_read_only(runs: Runs, tmp_path: Path, folder: str) -> None:
    """As Linux makes it when the disk below fails: in the middle of a run, and for good."""
    at = {"checkpoints": 6, "training_viz": 8}[folder]
    operations = {"checkpoints": "create,rename", "training_viz": "write"}[folder]
    place = {"checkpoints": CHECKPOINTS, "training_viz": STORE}[folder]
    done = runs.start(tmp_path, Fault(operations, place, at, errno.EROFS, forever=True))
    assert done.landed and not done.left
    one_line(done, 5)
    nothing_unfinished(tmp_path)
    steps, _ = what_is_there_is_whole(runs, tmp_path)
    goes_on(runs, tmp_path, steps)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB of its own."""
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
    """Take all the room that is left."""
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
    flags = [*SMALL, "--dataset", str(corpus), "--repeat", "--checkpoint-interval", "100", "--display-samples", "50"]
    (small_disk / "taken").write_bytes(bytes(1))
    said = small_disk.with_name("said")
    with said.open("w") as err:
        process = subprocess.Popen(
            [sys.executable, PROJECT / "train_slimpajama.py", *flags, "--steps", "3000"],
            cwd=small_disk,
            env=command_environment(),
            stdout=subprocess.DEVNULL,
            stderr=err,
        )
        until = time.monotonic() + 120
        while process.poll() is None and not list(small_disk.glob("checkpoints/*.bin")):
            assert time.monotonic() < until
            time.sleep(0.01)
        fill(small_disk / "taken")
        code = process.wait(120)
    line = said.read_text()
    assert code == 5 and line.startswith("train_slimpajama.py: ") and line.count("\n") == 1, (code, line)
    nothing_unfinished(small_disk)
    steps = whole_checkpoints(small_disk / "checkpoints")
    assert steps and store_is_whole(small_disk / "training_viz")
    (small_disk / "taken").unlink()
    done = steps[-1] + 20
    for folder, words in ((small_disk, ["--resume"]), (whole, flags)):
        again = runs.warm.run(*words, "--steps", done, folder=folder)
        assert again.code == 0, again.err
    equal_runs(whole, small_disk, done)


@pytest.mark.parametrize("kind", ["checkpoint", pytest.param("store", marks=pytest.mark.full)])
def test_the_fault_can_miss(runs: Runs, tmp_path: Path, kind: str) -> None:
    """A control: a count that no run comes to is told from one that it does, which is how the loops above end."""
    fails, places, operations = KINDS[kind]
    assert not fails(runs, tmp_path / "run", Fault(operations[1], places, MOST, errno.EIO))
