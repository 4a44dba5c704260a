"""Ctrl-C and SIGTERM at the worst moments, two runs in one folder, a machine without memory, a clock that jumps."""

import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.runs.conftest import SMALL, Capture, Train, count_steps, error_line, start, table, wait_until
from tests.runs.test_resume import equal_runs
from trainer.base.signals import NOTHING_TRAINED

SLOW_DISK = """
import os, sys, time
sync, is_slow = os.fsync, lambda: os.path.exists("slow")
os.fsync = lambda file: (time.sleep(1.5 * is_slow()), sync(file))[1]
from trainer.cli import main
sys.exit(main())
"""
"""The command on a disk that takes 1.5 seconds for a sync while a file `slow` exists."""


def unfinished(folder: Path) -> list[Path]:
    return list((folder / "checkpoints").glob(".checkpoint_step_*.tmp"))


@pytest.fixture
def words(corpus: Path) -> list[str]:
    return [*SMALL, "--dataset", str(corpus), "--repeat", "--steps", "3000", "--checkpoint-interval", "10"]


def test_two_signals_during_a_save(train: Train, words: list[str], tmp_path: Path) -> None:
    """The second signal quits at once, and the previous checkpoint stays. After one: `test_cut_points.py`."""
    folder = tmp_path / "cut"
    folder.mkdir()
    process = start(words, folder, SLOW_DISK)
    wait_until(lambda: list((folder / "checkpoints").glob("checkpoint_step_*.bin")), process)
    (folder / "slow").touch()
    wait_until(lambda: unfinished(folder), process)
    os.kill(process.pid, signal.SIGINT)
    assert process.stderr is not None and any("Stopping after this step" in line for line in process.stderr)
    since = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=300)
    assert process.returncode == 143 and time.monotonic() - since < 1.5
    assert unfinished(folder)
    stopped = count_steps(folder / "training_viz")
    assert train("--resume", "--steps", stopped + 20, "--out", folder) == 0
    assert not unfinished(folder)
    assert train(*words[len(SMALL) : -4], "--steps", stopped + 20, "--out", tmp_path / "whole") == 0
    equal_runs(tmp_path / "whole", folder, stopped + 20)


NEVER_OPENED = """
import sys, time
from trainer.assemble import Builders
from trainer.cli import main

def open_documents(*arguments, **options):
    open("here", "w").close()
    time.sleep(60)

sys.exit(main(builders=Builders(open_documents=open_documents)))
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.full)]
)
def test_a_signal_before_the_first_step(words: list[str], tmp_path: Path, number: signal.Signals, code: int) -> None:
    """While the documents are opened: one line, nothing left behind."""
    process = start(words, tmp_path, NEVER_OPENED)
    wait_until((tmp_path / "here").exists, process)
    time.sleep(0.5)  # a signal just before the sleep takes effect after it: Python looks for signals between its steps
    os.kill(process.pid, number)
    _, error = process.communicate(timeout=90)
    assert process.returncode == code
    assert error == "train_slimpajama.py: interrupted before the first step; nothing was trained\n"
    assert not list(tmp_path.rglob("run.db"))


@pytest.mark.full
def test_ctrl_c_while_the_step_is_compiled(corpus: Path, tmp_path: Path) -> None:
    """A terminal sends the signal to the whole group, so it also ends the C++ compiler."""
    flags = [*SMALL, "--dataset", str(corpus), "--steps", "70", "--compile"]
    process = start(flags, tmp_path, environment={"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")})

    def compiling() -> bool:
        shown = subprocess.run(["ps", "-eo", "sid,args"], capture_output=True, text=True, check=True).stdout
        return any(int(line.split()[0]) == process.pid and "cc1plus" in line for line in shown.splitlines()[1:])

    wait_until(compiling, process)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, f"\n{NOTHING_TRAINED}\n")
    assert not list(tmp_path.rglob("run.db"))


def test_two_runs_in_one_folder(train: Train, words: list[str], tmp_path: Path, capsys: Capture) -> None:
    """The second run is refused if it shares either folder, and the message names the first; `kill -9` frees both."""
    first = start([*words, "--viz-dir", "viz", "--checkpoint-dir", "saved"], tmp_path)
    wait_until(lambda: list((tmp_path / "saved").glob("checkpoint_step_*.bin")), first)
    for flags in (["--viz-dir", "viz"], ["--checkpoint-dir", "saved"], ["--checkpoint-dir", "saved", "--resume"]):
        assert train(*([] if "--resume" in flags else words), *flags, small=False) == 2
        error = error_line(capsys)
        assert re.search(rf"is in use by run \d{{8}}-\d{{6}}-\w+ \(process {first.pid}\)", error), error
    first.kill()
    first.communicate()
    rows = count_steps(tmp_path / "viz")
    assert train("--resume", "--viz-dir", "viz", "--checkpoint-dir", "saved", "--steps", rows + 20) == 0
    assert count_steps(tmp_path / "viz") == rows + 20


OUT_OF_MEMORY = """
import dataclasses, sys, torch
from tests.runs.conftest import QUICK
from trainer.cli import main
from trainer.learning.step import TrainingStep

class Hungry(TrainingStep):
    count = 0
    def __call__(self, ids, learning_rate):
        self.count += 1
        if self.count > 30:
            {how}
        return super().__call__(ids, learning_rate)

sys.exit(main(builders=dataclasses.replace(QUICK, training_step=Hungry)))
"""


@pytest.mark.parametrize(
    "how",
    [
        "self.hoard = torch.empty(2**55)",
        pytest.param("self.hoard = bytearray(2**55)", marks=pytest.mark.full),
        pytest.param("raise torch.OutOfMemoryError('CUDA out of memory')", marks=pytest.mark.full),
    ],
)
def test_out_of_memory(train: Train, words: list[str], tmp_path: Path, how: str) -> None:
    """Real allocations that fail, and the exception of a GPU's allocator."""
    folder = tmp_path / "cut"
    folder.mkdir()
    process = start(words, folder, OUT_OF_MEMORY.format(how=how))
    _, error = process.communicate(timeout=300)
    assert process.returncode == 5, error
    assert error.startswith("train_slimpajama.py: out of memory: ") and error.count("\n") == 1
    assert "--max-seq-length" in error
    assert table(folder / "training_viz", "SELECT outcome FROM run") == [("out of memory",)]
    assert train("--resume", "--steps", 40, "--out", folder) == 0
    assert train(*words[len(SMALL) : -4], "--steps", 40, "--out", tmp_path / "whole") == 0
    equal_runs(tmp_path / "whole", folder, 40)


def test_a_clock_that_jumps(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wall time jumps by years in both directions: no rate is negative, and no decision depends on it."""
    assert train("--steps", 30, "--out", "whole", "--checkpoint-interval", 7, "--viz-interval", 10) == 0
    generator, real = random.Random(0), time.time
    monkeypatch.setattr(time, "time", lambda: max(0.0, real() + generator.uniform(-1e9, 1e9)))
    assert train("--steps", 11, "--out", "jumps", "--checkpoint-interval", 7, "--viz-interval", 10) == 0
    assert train("--resume", "--steps", 30, "--out", "jumps") == 0
    equal_runs(tmp_path / "whole", tmp_path / "jumps", 30)
    rows = table(tmp_path / "jumps" / "training_viz", "SELECT throughput, seconds, seconds_waited FROM steps")
    assert all(0 < rate < 1e9 and 0 < seconds < 600 and 0 <= waited <= seconds for rate, seconds, waited in rows)
