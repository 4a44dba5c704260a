"""A run in a notebook: its steps as a DataFrame, its chart as an image. What that takes is imported when asked for."""

import io
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas
    import PIL.Image


def load(folder: Path | str = "training_viz") -> "pandas.DataFrame":
    """The steps of a run, also while it lasts: a row for each, by `step`; the columns of `metrics_history.json`.

    `folder`: that of the record, or its `run.db`. Units: docs/files.md. Raises FileNotFoundError where there is no run,
    ValueError for a file that can't be read as one.
    """
    import pandas

    from viz.reader import StoreReader

    path = _store_in(folder)
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
    """The chart of a run as of `step` finished documents, the newest where none is named; Jupyter shows it by itself.

    `folder`: as in `load`, which raises the same. `size`: width and height in pixels.
    """
    import PIL.Image

    from viz.chart_files import draw_picture

    path = _store_in(folder)
    try:
        picture = draw_picture(path.parent, step, size, dark)
    except sqlite3.Error as error:
        raise ValueError(f"{path} can't be read: {error}") from error
    return PIL.Image.open(io.BytesIO(picture))


def _store_in(folder: Path | str) -> Path:
    path = Path(folder) if Path(folder).name == "run.db" else Path(folder) / "run.db"
    if not path.is_file():
        raise FileNotFoundError(f"no run in {path.parent}: `python train_slimpajama.py --test` makes one")
    return path
