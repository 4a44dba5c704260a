"""A run as a moving picture: its chart at evenly spaced steps, as a GIF or an animated PNG."""

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
SHORTEST = 0.02  # seconds of a frame: what a GIF can say
LAST_SECONDS = 2.0  # that the last frame stands
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
    """Write the run in a folder to `path` (`.gif` or `.png`) as a film of `seconds`. Returns the number of frames.

    `frames`: 2 to `MOST_FRAMES`, all of them in memory (1 MB each). Raises ValueError for others, another suffix,
    frames of less than `SHORTEST` seconds or a run without a step; OSError where it can't be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: a time-lapse is a .gif or a .png, by the name of its file")
    if not 2 <= frames <= MOST_FRAMES or seconds / frames < SHORTEST:
        raise ValueError(
            f"{frames} frames in {seconds:g} s: 2 to {MOST_FRAMES} of at least {SHORTEST} s each make a film"
        )
    with StoreReader(folder / "run.db") as store:
        viewer = Viewer(store)
        view = viewer.look()
        if not view.count:
            raise ValueError(f"{folder / 'run.db'} holds no step yet: there is nothing to show")
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
