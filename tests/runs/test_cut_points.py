"""A run of 30 steps that is stopped at any step, in any way, and resumed equals one that was never stopped."""

import json
import random
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.conftest import make_texts, write_jsonl
from tests.faults import Fault, Warm, warm
from tests.runs.conftest import SMALL, table
from tests.runs.test_resume import equal_runs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD and /proc")

STEPS = 30
ALL = range(1, STEPS)
QUICK = {19}  # the last step of the first epoch


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """19 documents in three shards, so that 30 steps read them one and a half times. Some rows are skipped, also at the
    end of a shard and of the data."""
    folder = tmp_path_factory.mktemp("shards")
    texts: list[Any] = list(make_texts(19, seed=3))
    write_jsonl(folder / "a.jsonl", [*texts[:3], "short", *texts[3:6], None])
    lines = "".join(json.dumps({"text": text}) + "\n" for text in ["", *texts[6:14]])
    (folder / "b.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    write_jsonl(folder / "c.jsonl", [*texts[14:], "short", 3])
    return folder


class Runs:
    """Runs on these shards, and one per dtype that is never stopped."""

    def __init__(self, shards: Path, folder: Path) -> None:
        self.warm: Warm = warm()
        self._shards, self._folder = shards, folder
        self._count = 0
        self._whole: dict[str, Path] = {}

    def folder(self) -> Path:
        self._count += 1
        made = self._folder / str(self._count)
        made.mkdir()
        return made

    def run(
        self,
        folder: Path,
        *arguments: object,
        resume: bool = False,
        fault: Fault | None = None,
        fresh: bool = False,
    ) -> int:
        first = ["--resume"] if resume else [*SMALL, "--display-samples", 7, "--dataset", self._shards, "--repeat"]
        done = self.warm.run(*first, *arguments, folder=folder, fault=fault, fresh=fresh)
        assert done.code in (0, 130, 143), (done.code, done.err)
        assert not done.left and bool(done.landed) == bool(fault)
        return done.code

    def whole(self, dtype: str) -> Path:
        if dtype not in self._whole:
            folder = self.folder()
            self.run(folder, "--steps", STEPS, "--dtype", dtype)
            self._whole[dtype] = folder
        return self._whole[dtype]

    def equal_in_parts(self, dtype: str, cuts: list[int]) -> None:
        """Stop a run after `cuts` documents and resume it each time; it must equal the run that was never stopped."""
        folder = self.folder()
        self.run(folder, "--steps", cuts[0], "--dtype", dtype)
        for stop in [*cuts[1:], STEPS]:
            self.run(folder, "--steps", stop, resume=True)
        resumed = table(folder / "training_viz", "SELECT step FROM events WHERE kind = 'resume'")
        assert resumed == [(cut,) for cut in cuts]
        equal_runs(self.whole(dtype), folder, STEPS)
        shutil.rmtree(folder)  # there are many


@pytest.fixture(scope="module")
def runs(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(shards, tmp_path_factory.mktemp("cuts"))


@pytest.mark.full
def test_the_run_crosses_shards_and_epochs(runs: Runs) -> None:
    """Otherwise the tests below would prove little."""
    viz = runs.whole("fp32") / "training_viz"
    rows = table(viz, "SELECT shard, text_hash FROM documents ORDER BY step")
    shards = [Path(shard).name for shard, _ in rows]
    assert shards == [*["a.jsonl"] * 6, *["b.jsonl.zst"] * 8, *["c.jsonl"] * 5, *["a.jsonl"] * 6, *["b.jsonl.zst"] * 5]
    assert [text for _, text in rows[:11]] == [text for _, text in rows[19:]]
    assert table(viz, "SELECT step FROM events WHERE kind = 'epoch'") == [(19,)]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.full
def test_a_fork_computes_the_same_as_a_new_process(runs: Runs, dtype: str) -> None:
    """So what holds for forks of the warm process holds for a user's: equal to the last bit, with two threads."""
    folder = runs.folder()
    runs.run(folder, "--steps", STEPS, "--dtype", dtype, fresh=True)
    equal_runs(runs.whole(dtype), folder, STEPS)


@pytest.mark.parametrize("dtype", ["fp32", pytest.param("bf16", marks=pytest.mark.full)])
@pytest.mark.parametrize("cut", [pytest.param(cut, marks=[] if cut in QUICK else pytest.mark.full) for cut in ALL])
def test_stopped_once(runs: Runs, dtype: str, cut: int) -> None:
    runs.equal_in_parts(dtype, [cut])


@pytest.mark.full
@pytest.mark.parametrize("seed", range(6))
def test_stopped_two_and_three_times(runs: Runs, seed: int) -> None:
    cuts = sorted(random.Random(seed).sample(ALL, 3 - seed % 2))
    dtype = "bf16" if seed % 3 == 0 else "fp32"
    runs.equal_in_parts(dtype, cuts)


@pytest.mark.parametrize(
    "cut", [14, *(pytest.param(cut, marks=pytest.mark.full) for cut in (1, 2, 5, 6, 13, 18, 19, 20, 28))]
)
def test_stopped_by_a_signal_in_the_middle_of_a_save(runs: Runs, cut: int) -> None:
    """The signal comes when the checkpoint after `cut` documents is created, while the reader is far ahead."""
    folder, number = runs.folder(), signal.SIGTERM if cut % 2 else signal.SIGINT
    place = f"checkpoints/.checkpoint_step_{cut}.bin.*"
    fault = Fault("create", place, number=number)
    code = runs.run(folder, "--steps", STEPS, "--checkpoint-interval", 1, fault=fault)
    assert code == 128 + number
    done = table(folder / "training_viz", "SELECT count(*) FROM steps")[0][0]
    assert cut <= done < STEPS
    runs.run(folder, resume=True)
    assert table(folder / "training_viz", "SELECT step FROM events WHERE kind = 'resume'") == [(done,)]
    equal_runs(runs.whole("fp32"), folder, STEPS)
