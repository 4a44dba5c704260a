"""The pictures in a folder: `training_step_000050.png` after 50 documents, `training_latest.png` the newest of them."""

import re
from pathlib import Path

import numpy as np

from viz.charts import Chart
from viz.filesystem import replace_file
from viz.reader import Columns, StoreReader


def draw_run(chart: Chart, store: StoreReader, columns: Columns, folder: Path, step: int) -> Path:
    """Draw the run as of `step` finished documents: `training_step_000050.png`, and the latest if none is newer.

    `columns` may reach further than `step`. Returns the picture's path. Raises OSError when it can't be written.
    """
    known = int(np.searchsorted(columns["steps"], step))
    columns = {name: values[:known] for name, values in columns.items()}
    picture = chart.draw(store.run(), columns, store.latest_text_sample(step), step, store.evaluations(step))
    path = folder / f"training_step_{step:06d}.png"
    replace_file(path, [picture])
    if step >= max(numbered_charts(folder)):
        replace_file(folder / "training_latest.png", [picture])
    return path


def numbered_charts(folder: Path) -> dict[int, Path]:
    """Finished documents -> picture, of all the numbered pictures in a folder."""
    pattern = re.compile(r"training_step_(\d{6,})\.png")
    return {int(match[1]): path for path in folder.iterdir() if (match := pattern.fullmatch(path.name))}


def forget_charts(folder: Path, step: int) -> None:
    """Remove the pictures of more than `step` documents, which the run has forgotten; the latest is the newest left."""
    charts = numbered_charts(folder)
    gone = [number for number in charts if number > step]
    for number in gone:
        charts.pop(number).unlink(missing_ok=True)
    latest = folder / "training_latest.png"
    if gone and charts:
        replace_file(latest, [charts[max(charts)].read_bytes()])
    elif gone:
        latest.unlink(missing_ok=True)
