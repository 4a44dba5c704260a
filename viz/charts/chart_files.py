"""The chart files of a run: `training_step_000050.png` after 50 documents; `training_latest.png` copies the newest."""

import re
from pathlib import Path

from common.file_replacement import replace_file
from viz.charts.figure import SIZE, Chart
from viz.record.reader import StoreReader
from viz.record.runs import KEEP_CHARTS
from viz.views.run_view import Viewer


def draw_run(chart: Chart, viewer: Viewer, folder: Path, step: int) -> Path:
    """Draw the run as of `step` finished documents and replace `training_latest.png`, unless a newer chart exists.

    Returns the path of the numbered chart. Raises OSError if it can't be written.
    """
    picture = chart.draw(viewer.look(step))
    path = folder / f"training_step_{step:06d}.png"
    replace_file(path, lambda file: file.write(picture), durable=False)
    if step >= max(numbered_charts(folder)):
        replace_file(folder / "training_latest.png", lambda file: file.write(picture), durable=False)
    return path


def numbered_steps(viewer: Viewer) -> list[int]:
    """Return the numbers of finished documents at which a run has a chart: each interval, thinned, and the end."""
    view = viewer.look()
    if not view.count:
        return []
    config, first = view.run["config"], int(view.column("steps")[0]) + 1
    interval = int(config.get("viz_interval") or view.step)
    steps = {*range(-(-first // interval) * interval, view.step, interval), view.step}
    return thinned(sorted(steps), int(config.get("keep_charts") or KEEP_CHARTS))


def draw_picture(folder: Path, step: int | None = None, size: tuple[int, int] = SIZE, dark: bool = False) -> bytes:
    """Draw the run in a folder as of `step` finished documents (default: all of it); return a PNG.

    Raises what `StoreReader` raises, and ValueError if the run has fewer documents.
    """
    with StoreReader(folder / "run.db") as store:
        viewer = Viewer(store)
        newest = viewer.look().step
        if step is not None and not 0 <= step <= newest:
            raise ValueError(f"the run in {folder} has {newest:,} documents, so it can't be drawn as of {step:,}")
        return Chart(size, dark=dark).draw(viewer.look(step))


def numbered_charts(folder: Path) -> dict[int, Path]:
    """Return the numbered charts in a folder: finished documents -> path."""
    pattern = re.compile(r"training_step_(\d{6,})\.png")
    return {int(match[1]): path for path in folder.iterdir() if (match := pattern.fullmatch(path.name))}


def thin_charts(folder: Path, most: int) -> None:
    """Delete numbered charts until `most` are left, evenly spread over the run; the first and the newest stay."""
    charts = numbered_charts(folder)
    for number in charts.keys() - set(thinned(sorted(charts), most)):
        charts[number].unlink(missing_ok=True)


def thinned(numbers: list[int], most: int) -> list[int]:
    """Select at most `most` (2 or more) of increasing numbers, evenly spread, including the first and the last.

    The number whose neighbours are closest to each other is removed, one at a time. If there are more than twice as
    many as wanted, every second one is removed first.
    """
    numbers = list(numbers)
    while len(numbers) > 2 * most:
        numbers = [*numbers[:-1:2], numbers[-1]]
    while len(numbers) > max(most, 2):
        gaps = [later - earlier for earlier, later in zip(numbers, numbers[2:], strict=False)]
        del numbers[gaps.index(min(gaps)) + 1]
    return numbers


def delete_charts_after(folder: Path, step: int) -> None:
    """Delete the charts of more than `step` documents after a rollback; the latest chart is then the newest left."""
    charts = numbered_charts(folder)
    gone = [number for number in charts if number > step]
    for number in gone:
        charts.pop(number).unlink(missing_ok=True)
    latest = folder / "training_latest.png"
    if gone and charts:
        newest = charts[max(charts)].read_bytes()
        replace_file(latest, lambda file: file.write(newest), durable=False)
    elif gone:
        latest.unlink(missing_ok=True)
