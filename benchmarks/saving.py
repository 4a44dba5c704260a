"""Cost of saving a checkpoint: `python benchmarks/saving.py [small|base] [--steps N]`.

Trains on prepared ids in one process and saves three checkpoints on the way. Prints how long a save stops the loop, how
much it slows the steps next to it, and both as a share of training time at the default interval. Then resumes
(`--resume`) in a new process with the cursor far inside a shard, and prints the seconds until its first step. Needs
5 GB of memory and 3 GB of disk for `base`.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import zstandard

from trainer.base.device import choose_dtype
from trainer.config import FIELDS, MODEL_SIZES
from trainer.learning.step import TrainingStep
from trainer.model.language_model import LanguageModel
from trainer.run.checkpoints import CheckpointManager

INTERVAL: int = FIELDS["checkpoint_interval"].default
VOCABULARY, LENGTH = 8192, 256


def save_cost(size: str, steps: int) -> None:
    """Train on prepared ids, save as the trainer does, and print what the saves cost."""
    device = torch.device("cpu")
    model = LanguageModel(MODEL_SIZES[size], VOCABULARY)
    step = TrainingStep(model, dtype=choose_dtype("auto", device), max_seq_length=LENGTH)
    generator = random.Random(0)
    ids = [[generator.randrange(VOCABULARY) for _ in range(LENGTH)] for _ in range(16)]
    for number in range(3):
        step(ids[number], 1e-4)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        manager = CheckpointManager(Path(folder))
        alone: list[float] = []
        beside: list[float] = []
        stops: list[float] = []
        for number in range(steps):
            if number % (steps // 3) == steps // 6:
                since = time.monotonic()
                assert step.is_finite()
                manager.save(number, {"format": "", "version": 1, **step.state_dict()})
                stops.append(time.monotonic() - since)
            since = time.monotonic()
            step(ids[number % 16], 1e-4)
            is_saving = manager.is_saving
            (beside if is_saving else alone).append(time.monotonic() - since)
        manager.wait()
    ordinary = statistics.median(alone)
    slowed = sum(beside) - len(beside) * ordinary
    stop, lost = statistics.mean(stops), slowed / len(stops)
    print(
        f"{size}: a step takes {ordinary * 1000:.0f} ms; a save stops training for {stop * 1000:.0f} ms (check, copy) "
        f"and slows the {len(beside) / len(stops):.0f} steps next to it by {lost * 1000:.0f} ms in total: "
        f"{(stop + lost) / (INTERVAL * ordinary):.3%} of training time with a save every {INTERVAL:,} steps"
    )


def resume_seconds(rows: int) -> None:
    """Print the seconds from `--resume` to its first step, `rows` rows into a .jsonl.zst shard of 24,000."""
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefghilmnoprstu", k=generator.randint(2, 8))) for _ in range(5000)]
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        lines = (json.dumps({"text": " ".join(generator.choices(words, k=200))}) + "\n" for _ in range(24_000))
        (Path(folder) / "shard.jsonl.zst").write_bytes(zstandard.compress("".join(lines).encode(), 1))
        train = [sys.executable, str(Path(__file__).resolve().parent.parent / "train_slimpajama.py")]
        flags = "--dataset shard.jsonl.zst --model-size tiny --max-seq-length 32 --viz-interval 100000".split()
        quiet = ["--display-samples", "100000", "--warmup-steps", "10"]
        for stop in (5, rows):
            out = ["--out", f"at-{stop}"]
            subprocess.run(
                [*train, *flags, *quiet, *out, "--steps", str(stop)], cwd=folder, check=True, capture_output=True
            )
            since = time.time()
            subprocess.run(
                [*train, *out, "--resume", "--steps", str(stop + 3)], cwd=folder, check=True, capture_output=True
            )
            seconds = time.time() - since
            import sqlite3

            with sqlite3.connect(Path(folder) / f"at-{stop}" / "training_viz" / "run.db") as store:
                (began,) = store.execute("SELECT time FROM events WHERE kind = 'resume'").fetchone()
                (waited,) = store.execute("SELECT seconds_waited FROM steps WHERE step = ?", (stop,)).fetchone()
            print(
                f"--resume at row {stop:,}: {began - since:.1f} s until the record is open, then {waited:.2f} s until "
                f"the first document; {seconds:.1f} s in total, including three steps and the last chart"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", nargs="*", default=["small"], choices=list(MODEL_SIZES))
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--rows", type=int, default=10_000)
    arguments = parser.parse_args()
    for size in arguments.size:
        save_cost(size, arguments.steps)
    resume_seconds(arguments.rows)


if __name__ == "__main__":
    main()
