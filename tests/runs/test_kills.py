"""`kill -9` at chosen calls inside save, insert, export and replace: no damaged file, and the run resumes exactly."""

import random
import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from tests.faults import Call, Fault, Outcome, Warm, count_complete_files, has_sound_store, warm
from tests.runs.conftest import DOCUMENTS, SMALL, STEPS, table
from tests.runs.test_resume import equal_runs
from trainer.base.checkpoint_file import fault_of, read_state
from trainer.run.checkpoints import CheckpointManager

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD and /proc")

DONE, INTERVAL = 20, 4
FLAGS = f"--checkpoint-interval {INTERVAL} --viz-interval 5 --display-samples 6".split()


@dataclass(frozen=True)
class Place:
    """Where to kill, at `points` random counts; the first of them is in the quick suite if `quick`."""

    name: str
    operation: str
    pattern: str
    when: str
    points: int
    quick: bool = False


STATE, DIGEST, NAME = ".checkpoint_step_*.bin.[0-9]*.tmp", ".checkpoint_step_*.sha256.*.tmp", "checkpoint_step_*"
PLACES = [
    Place("begin", "create", "*/..run.*.tmp", "after", 1),
    Place("begin", "rename", "checkpoints/.run", "before", 1),
    Place("begin", "rename", "checkpoints/.run", "after", 1),
    Place("save", "create", f"checkpoints/{STATE}", "after", 1),
    Place("save", "write", f"checkpoints/{STATE}", "before", 4),
    Place("save", "write", f"checkpoints/{STATE}", "half", 5, quick=True),
    Place("save", "sync", f"checkpoints/{STATE}", "before", 2),
    Place("save", "sync", f"checkpoints/{STATE}", "after", 2),
    Place("save", "create", f"checkpoints/{DIGEST}", "after", 1),
    Place("save", "write", f"checkpoints/{DIGEST}", "half", 2),
    Place("save", "sync", f"checkpoints/{DIGEST}", "before", 1),
    Place("save", "rename", f"checkpoints/{NAME}.sha256", "before", 2),
    Place("save", "rename", f"checkpoints/{NAME}.sha256", "after", 2),
    Place("save", "rename", f"checkpoints/{NAME}.bin", "before", 3),
    Place("save", "rename", f"checkpoints/{NAME}.bin", "after", 3, quick=True),
    Place("save", "sync", "checkpoints", "before", 3),
    Place("delete", "unlink", f"checkpoints/{NAME}.bin", "before", 1),
    Place("delete", "unlink", f"checkpoints/{NAME}.bin", "after", 1),
    Place("delete", "unlink", f"checkpoints/{NAME}.sha256", "after", 1),
    Place("insert", "create", "training_viz/run.db", "after", 1),
    Place("insert", "write", "training_viz/run.db-journal", "half", 2),
    Place("insert", "write", "training_viz/run.db", "half", 2),
    Place("insert", "write", "training_viz/run.db-wal", "before", 3),
    Place("insert", "write", "training_viz/run.db-wal", "half", 4, quick=True),
    Place("insert", "sync", "training_viz/run.db-wal", "before", 3),
    Place("insert", "sync", "training_viz/run.db-wal", "after", 2),
    Place("insert", "unlink", "training_viz/run.db-*", "after", 2),
    Place("close", "write", "training_viz/run.db-journal", "half", 2),
    Place("close", "write", "training_viz/run.db", "half", 2),
    Place("close", "sync", "training_viz/run.db-journal", "after", 2),
    Place("close", "sync", "training_viz/run.db", "after", 2),
    Place("close", "unlink", "training_viz/run.db-*", "after", 3),
    Place("export", "create", "training_viz/.*.json.*.tmp", "after", 2),
    Place("export", "write", "training_viz/.*.json.*.tmp", "half", 3),
    Place("export", "rename", "training_viz/*.json", "before", 3, quick=True),
    Place("export", "rename", "training_viz/*.json", "after", 2),
    Place("replace", "create", "training_viz/.*.png.*.tmp", "after", 2),
    Place("replace", "write", "training_viz/.*.png.*.tmp", "half", 3, quick=True),
    Place("replace", "rename", "training_viz/*.png", "before", 2),
    Place("replace", "rename", "training_viz/*.png", "after", 2),
]


class Kills:
    """A run that was not killed, and how often it reached each place."""

    def __init__(self, warm: Warm, corpus: Path, folder: Path) -> None:
        self.warm, self._folder, self._corpus = warm, folder, corpus
        self.whole, calls = folder / "whole", []
        for name in ("whole", "again"):
            (folder / name).mkdir()
            done = self.start(folder / name, records=True)
            assert done.code == 0 and not done.left, done.err
            calls.append(done.calls)
        self._calls: list[tuple[Call, ...]] = calls

    def start(self, folder: Path, fault: Fault | None = None, *, records: bool = False) -> Outcome:
        words = [*SMALL, *FLAGS, "--steps", DONE, "--dataset", self._corpus]
        return self.warm.run(*words, folder=folder, fault=fault, records=records)

    def fault(self, place: Place, number: int) -> Fault:
        """A count, drawn by a seed, that every run reaches."""
        counts = [self._count(calls, place) for calls in self._calls]
        # How the store's rows are grouped into commits depends on timing, so not every run has the last ones.
        least, surely = 1, min(counts)
        assert surely, f"no run reaches {place}"
        if place.name == "insert":
            surely = max(1, surely * 2 // 3)
        if place.name == "close":
            least = surely * 2 // 3 + 1
        generator = random.Random(f"{place.name} {place.operation} {place.pattern} {place.when} {number}")
        return Fault(place.operation, place.pattern, generator.randint(least, surely), when=place.when)

    def _count(self, calls: tuple[Call, ...], place: Place) -> int:
        """The calls of one process: each counts its own, and images are made by another process than checkpoints."""
        counts: Counter[int] = Counter()
        for call in calls:
            paths = [path.partition("whole/")[2] or path.partition("again/")[2] for path in (call.path, call.to)]
            if call.operation == place.operation and any(fnmatchcase(path, place.pattern) for path in paths):
                counts[call.process] += 1
        return max(counts.values(), default=0)


@pytest.fixture(scope="module")
def kills(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Kills:
    return Kills(warm(), corpus, tmp_path_factory.mktemp("kills"))


@pytest.mark.parametrize(
    ("place", "number"),
    [
        pytest.param(
            place,
            number,
            id=f"{place.name}-{place.operation}-{place.when}-{index}-{number}",
            marks=[] if place.quick and not number else pytest.mark.full,
        )
        for index, place in enumerate(PLACES)
        for number in range(place.points)
    ],
)
def test_killed_there(kills: Kills, tmp_path: Path, place: Place, number: int) -> None:
    fault = kills.fault(place, number)
    done = kills.start(tmp_path, fault)
    assert done.landed and done.code == -9, f"the kill did not land: {fault}, exit {done.code}\n{done.err}"
    assert not done.left
    viz, manager = tmp_path / "training_viz", CheckpointManager(tmp_path / "checkpoints")
    count_complete_files(viz)
    has_store = has_sound_store(viz)
    found = [(step, path) for step, path in manager.all() if not fault_of(path)]
    assert found == manager.all()  # every named checkpoint is complete
    if found:
        newest, path = found[-1]
        assert has_store and read_state(path)["step"] == newest
        kept = table(viz, STEPS)
        # One interval, plus the steps trained while the newest was being written: the next save would have waited.
        assert newest <= len(kept) <= newest + 2 * INTERVAL
        assert kept == table(kills.whole / "training_viz", STEPS)[: len(kept)]
        assert table(viz, DOCUMENTS) == table(kills.whole / "training_viz", DOCUMENTS)[: len(kept)]
        again = kills.warm.run("--resume", "--steps", DONE, folder=tmp_path)
        resumed = [(newest,)] if newest < DONE else []  # otherwise it is finished, except for its last images
        assert not again.err and table(viz, "SELECT step FROM events WHERE kind = 'resume'") == resumed
    else:
        again = kills.start(tmp_path)
    assert again.code == 0 and not again.left, again.err
    equal_runs(kills.whole, tmp_path, DONE)
    assert count_complete_files(viz) >= 5  # three JSON files, the newest image and its numbered copy
    hidden = [path.name for folder in (viz, tmp_path / "checkpoints") for path in folder.glob(".*")]
    assert not [name for name in hidden if name.endswith(".tmp")]
    shutil.rmtree(tmp_path)  # they are many


def test_there_are_fifty_points(kills: Kills) -> None:
    """As promised; two of the random points may be the same."""
    points = {str(kills.fault(place, number)) for place in PLACES for number in range(place.points)}
    assert len(points) >= 50
