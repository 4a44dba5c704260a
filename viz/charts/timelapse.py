"""The time lapse of a run: its chart at evenly spaced steps, as a GIF or an animated PNG."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from common.file_replacement import replace_file
from viz.charts.figure import Chart
from viz.record.reader import StoreReader
from viz.views.run_view import Viewer

FRAMES = 60
SECONDS = 12.0
MOST_FRAMES = 600
SHORTEST = 0.02  # seconds of a frame; browsers show a shorter one of a GIF for 0.1 s
LAST_SECONDS = 2.0  # for which the last frame stays
SIZE = (1280, 800)
FORMATS = {".gif": "GIF", ".png": "PNG"}


def make_timelapse(
    folder: Path,
    path: Path,
    *,
    frames: int = FRAMES,
    seconds: float = SECONDS,
    size: tuple[int, int] = SIZE,
    dark: bool = False,
) -> int:
    """Write a time lapse of the run in `folder` to `path` (`.gif` or `.png`); return the number of frames.

    `frames`: 2 to `MOST_FRAMES`, all held in memory (1 MB each). Raises ValueError for another number or suffix, for
    frames shorter than `SHORTEST` seconds and for a run without steps, OSError if the file can't be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: the name of a time lapse must end in .gif or .png")
    if not 2 <= frames <= MOST_FRAMES or seconds / frames < SHORTEST:
        raise ValueError(
            f"a time lapse has 2 to {MOST_FRAMES} frames of at least {SHORTEST} s each, not {frames} in {seconds:g} s"
        )
    with StoreReader(folder / "run.db") as store:
        viewer = Viewer(store)
        view = viewer.look()
        if not view.count:
            raise ValueError(f"{folder / 'run.db'} has no steps yet, so there is nothing to show")
        begin = min(int(view.column("steps")[0]) + 2, view.step)
        steps = np.unique(np.linspace(begin, view.step, frames).round().astype(int)).tolist()
        first, *others = _drawn(Chart(size, dark=dark), viewer, steps)
    durations = [round(1000 * seconds / len(steps))] * (len(steps) - 1) + [round(1000 * LAST_SECONDS)]
    file = io.BytesIO()
    first.save(file, FORMATS[path.suffix.lower()], save_all=True, append_images=others, duration=durations, loop=0)
    replace_file(path, lambda target: target.write(file.getvalue()), durable=False)
    return len(steps)


def _drawn(chart: Chart, viewer: Viewer, steps: list[int]) -> Iterator[Image.Image]:
    for step in steps:
        with Image.open(io.BytesIO(chart.draw(viewer.look(step)))) as picture:
            yield picture.copy()
