"""Time to read a run and draw its chart, for runs of several lengths.

Generates runs in real stores, with a prompt repeated at every 50th document. Measures the first read (all rows), then a
later read and the image (medians of several).
"""

import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from viz.charts.figure import Chart
from viz.record.reader import StoreReader
from viz.record.schema import STEP, insert_statement, make_row
from viz.record.writer import StoreWriter
from viz.views.run_view import Viewer

REPEATS = 7


def fill(path: Path, count: int) -> None:
    """Write a store with `count` steps and their sources (no texts), with generations for one prompt."""
    StoreWriter(path, {"config": {"num_steps": 2 * count, "warmup_steps": 50}, "vocab_size": 8192}).close()
    random, steps = np.random.default_rng(0), np.arange(count)
    columns = {
        "loss": 3 + 6 * np.exp(-steps / 300) + random.normal(0, 0.9, count),
        "accuracy": random.uniform(0.2, 0.4, count),
        "throughput": random.normal(2500, 300, count),
        "learning_rate": np.full(count, 1e-3),
        "gradient_norm": random.lognormal(1, 0.5, count),
        "tokens": np.full(count, 255),
        "bytes": np.full(count, 1000),
        "seconds": np.full(count, 0.1),
        "seconds_waited": np.full(count, 0.001),
        "unigram_entropy": 6.6 - 2.5 * np.exp(-steps / 20),
    }
    names = random.choice(["RedPajamaCommonCrawl", "RedPajamaC4", "RedPajamaGithub", "RedPajamaArXiv"], count)
    db = sqlite3.connect(path)
    values = zip(steps.tolist(), *(columns[name].tolist() for name in STEP), strict=True)
    marks = ", ".join("?" * (1 + len(STEP)))
    db.executemany(f"INSERT INTO steps (step, rank, {', '.join(STEP)}) VALUES (?, 0, {marks[3:]})", values)
    sources = zip(steps.tolist(), names.tolist(), strict=True)
    db.executemany("INSERT INTO documents (step, rank, source) VALUES (?, 0, ?)", sources)
    for step in range(0, count, 50):
        row = {"step": step, "rank": 0, "prompt": "def main(", "input": "def main(", "output": "return x\n" * 8}
        db.execute(*insert_statement("text_samples", make_row("text_samples", row)))
    db.commit()
    db.close()


def milliseconds(work: Callable[[], object]) -> float:
    """Return the duration of one call."""
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began)


def main(documents: list[int]) -> None:
    """Print a table with a row for a run of each of these lengths."""
    print("| documents | first read, ms | a later read | image | later read + image |\n|---|---|---|---|---|")
    chart = Chart()
    for count in documents:
        print(f"{count:,} documents", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            fill(Path(folder) / "run.db", count)
            with StoreReader(Path(folder) / "run.db") as store:
                viewer = Viewer(store)
                first = milliseconds(viewer.look)
                view = viewer.look()
                chart.draw(view)
                later = [milliseconds(viewer.look) for _ in range(REPEATS)]
                images = [milliseconds(lambda: chart.draw(view)) for _ in range(REPEATS)]  # noqa: B023  # called at once
        read, image = statistics.median(later), statistics.median(images)
        print(f"| {count:,} | {first:,.0f} | {read:.1f} | {image:.0f} | {read + image:.0f} |")
