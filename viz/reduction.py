"""What of a long curve is sent to a page: lowest and highest of each pixel, each with its step, as numbers of JSON."""

from typing import Any

import numpy as np
import numpy.typing as npt

from viz.curves import BLOCK, Curve
from viz.smoothing import Floats

Rows = npt.NDArray[np.intp]


def outline(curve: Curve, steps: npt.NDArray[np.int64], first: int, last: int, pixels: int, *, log: bool) -> Rows:
    """Rows, first <= row < last, increasing, that keep the curve's look on an axis of so many pixels.

    Lowest and highest finite value of every pixel and both ends. `log`: the axis shows log(max(step, 1)). Where a pixel
    holds thousands of rows, its border is that of a block of `viz/curves.py`: a quarter of a pixel off at most.
    """
    if last <= first:
        return np.empty(0, np.intp)
    if not log or last - first <= 2 * pixels:
        return curve.outline(last, pixels, first)
    edges = np.geomspace(max(int(steps[first]), 1), max(int(steps[last - 1]), 1) + 1, pixels + 1)
    starts = np.unique(np.append(first, np.searchsorted(steps[first:last], edges[1:-1]) + first))
    starts = starts[starts < last]
    wide = np.flatnonzero(np.diff(np.append(starts, last)) >= 4 * BLOCK)
    if not len(wide):
        return first + _extremes_from(curve.values(last)[first:], starts - first)
    begin = int(wide[0])  # all pixels behind it are as wide: so it is on a logarithmic axis
    starts = np.unique(np.append(starts[:begin], -(-starts[begin:] // BLOCK) * BLOCK))
    starts = starts[starts < last]
    rows = np.concatenate((np.arange(first, starts[begin]), curve.candidates(int(starts[begin]), last)))
    kept: Rows = rows[_extremes_from(curve.values()[rows], np.searchsorted(rows, starts))]
    return kept


def _extremes_from(values: Floats, starts: Rows) -> Rows:
    """Indices of the lowest and the highest finite value of each part; `starts`, from 0 on, are where parts begin."""
    finite = np.isfinite(values)
    part = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(values))))
    found = [np.flatnonzero(finite)[[0, -1]]] if finite.any() else []
    for ufunc, hidden in ((np.minimum, np.inf), (np.maximum, -np.inf)):
        shown = np.where(finite, values, hidden)
        places = np.flatnonzero(finite & (shown == ufunc.reduceat(shown, starts)[part]))
        found.append(places[np.unique(part[places], return_index=True)[1]])  # of equals the first
    kept: Rows = np.unique(np.concatenate(found))
    return kept


def numbers(values: npt.ArrayLike) -> list[Any]:
    """(N,) numbers as JSON has them: six significant digits, None for what is not finite."""
    array = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(array) & (array != 0)
    scale = np.ones_like(array)
    with np.errstate(invalid="ignore", over="ignore"):
        scale[finite] = 10.0 ** (5 - np.floor(np.log10(np.abs(array[finite]))))
        rounded = np.round(array * scale) / scale
    rounded[finite & ~np.isfinite(rounded)] = 0.0  # below 1e-303
    known = np.isfinite(array)
    return [value if is_known else None for value, is_known in zip(rounded.tolist(), known.tolist(), strict=True)]


def number(value: float | None) -> float | None:
    """One number as `numbers` has it."""
    found: float | None = None if value is None else numbers([value])[0]
    return found
