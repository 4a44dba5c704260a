"""A run in a notebook: its steps as a DataFrame, its chart as an image. pandas and matplotlib are imported on use."""

import io
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas
    import PIL.Image


def load(folder: Path | str = "training_viz") -> "pandas.DataFrame":
    """Return the steps of a run, also while it trains: one row per `step`, the columns of `metrics_history.json`.

    `folder`: the folder of the record, its `run.db`, or the folder given to `--out`. Units: docs/files.md. Raises
    ValueError if there is no readable run.
    """
    import pandas

    from viz.record.reader import StoreReader
    from viz.record.runs import record_of

    path = record_of(Path(folder)) / "run.db"
    try:
        with StoreReader(path) as store:
            columns = store.columns()
    except sqlite3.Error as error:
        raise ValueError(f"{path} can't be read: {error}") from error
    return pandas.DataFrame(columns).set_index("steps").rename_axis("step")


def show(
    folder: Path | str = "training_viz",
    step: int | None = None,
    dark: bool = False,
    size: tuple[int, int] = (1600, 1000),
) -> "PIL.Image.Image":
    """Return the chart of a run as of `step` finished documents (default: all of them), which Jupyter displays.

    `folder` and errors: as for `load`. `size`: width and height in pixels.
    """
    import PIL.Image

    from viz.charts.chart_files import draw_picture
    from viz.record.runs import record_of

    record = record_of(Path(folder))
    try:
        picture = draw_picture(record, step, size, dark)
    except sqlite3.Error as error:
        raise ValueError(f"{record / 'run.db'} can't be read: {error}") from error
    return PIL.Image.open(io.BytesIO(picture))
