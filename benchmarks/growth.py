"""Check whether a long run slows down or uses more memory: `tiny` after 1,000 steps and at the end."""

import contextlib
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import WINDOW
from benchmarks.contenders import PROJECT, seconds_of_run, write_corpus
from benchmarks.timing import in_words, print_table


def main(steps: int, *, window: int = WINDOW) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder / "corpus.jsonl.zst", 3000)
        flags = ["--dataset", "corpus.jsonl.zst", "--repeat", "--model-size", "tiny", "--steps", str(steps)]
        with (folder / "output.txt").open("w") as output:
            command = [sys.executable, str(PROJECT / "train_slimpajama.py"), *flags]
            run = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output)
        memory: dict[int, float] = {}
        try:
            while run.poll() is None:
                time.sleep(0.2)
                done = _steps_done(folder)
                if done >= window:
                    memory[done] = _megabytes(run.pid) or memory.get(done, 0.0)
        finally:
            run.kill()  # after Ctrl-C it would otherwise keep writing into the deleted folder
            run.wait()
        if run.returncode:
            raise SystemExit((folder / "output.txt").read_text()[-2000:])
        seconds = seconds_of_run(folder, 0)
    first, last = ([1000 * value for value in part] for part in (seconds[window : 2 * window], seconds[-window:]))
    early, late = min(memory), max(memory)
    print_table(
        f"`tiny`, {steps:,} steps, everything enabled",
        [
            ("after documents", "per step", "memory"),
            (f"{window:,}", in_words(first), f"{memory[early]:.0f} MB"),
            (f"{steps:,}", in_words(last), f"{memory[late]:.0f} MB"),
            (
                "end ÷ beginning",
                f"{statistics.median(last) / statistics.median(first):.3f} (medians), "
                f"{statistics.fmean(last) / statistics.fmean(first):.3f} (means)",
                f"{memory[late] - memory[early]:+.0f} MB",
            ),
        ],
    )


def _steps_done(folder: Path) -> int:
    """Return the last step in the store, or 0 before there is one."""
    store = f"file:{folder}/training_viz/run.db?mode=ro"
    with contextlib.suppress(sqlite3.Error), sqlite3.connect(store, uri=True) as database:
        return int(database.execute("SELECT max(step) FROM steps").fetchone()[0] or 0)
    return 0


def _megabytes(pid: int) -> float | None:
    """Return the resident memory of a process in MB, or None if the process has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    found = [int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS")]
    return found[0] if found else None
