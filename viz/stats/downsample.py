"""Arrays that grow, and curves made of them, which find the extremes of a part without reading all of it."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from common.debiased_average import Floats
from viz.stats.averages import Indices, extremes

BLOCK = 256  # rows whose lowest and highest are remembered


class Growing:
    """A one-dimensional array that grows at its end, into twice the room when it is full: rows are copied rarely."""

    def __init__(self, dtype: Any = np.float64) -> None:
        self._room = np.empty(0, dtype)
        self.size = 0

    def extend(self, values: npt.NDArray[Any]) -> None:
        size = self.size + len(values)
        if size > len(self._room):
            room = np.empty(2 * size, self._room.dtype)
            room[: self.size] = self.values()
            self._room = room
        self._room[self.size : size] = values
        self.size = size

    def values(self, count: int | None = None) -> npt.NDArray[Any]:
        """The first `count`, or all: a view, good until the next `extend`."""
        return self._room[: self.size if count is None else count]


class Curve(Growing):
    """Numbers that are drawn as a line: it knows the lowest and the highest of every `BLOCK` rows."""

    def __init__(self) -> None:
        super().__init__()
        self._lowest, self._highest = Growing(np.intp), Growing(np.intp)  # a row for each whole block

    def extend(self, values: npt.NDArray[Any]) -> None:
        super().extend(values)
        begun, whole = self._lowest.size, self.size // BLOCK
        blocks = self.values()[begun * BLOCK : whole * BLOCK].reshape(-1, BLOCK)
        starts = np.arange(begun, whole) * BLOCK
        finite = np.isfinite(blocks)
        self._lowest.extend(starts + np.where(finite, blocks, np.inf).argmin(axis=1))
        self._highest.extend(starts + np.where(finite, blocks, -np.inf).argmax(axis=1))

    def candidates(self, first: int, count: int) -> Indices:
        """Rows of `first` to `count` among which the extremes of any part are, increasing.

        Both ends, lowest and highest of each block within, and all rows outside such blocks.
        """
        begun = min(-(-first // BLOCK), count // BLOCK)
        whole = max(begun, count // BLOCK)
        ends = (np.arange(first, min(begun * BLOCK, count)), np.arange(max(whole * BLOCK, first), count))
        inner = (self._lowest.values(whole)[begun:], self._highest.values(whole)[begun:])
        rows = np.concatenate((*ends, *inner, [first, count - 1]))
        rows.sort()
        kept: Indices = rows[np.append(True, rows[1:] != rows[:-1])]
        return kept

    def outline(self, count: int, buckets: int) -> Indices:
        """`smoothing.extremes` of the first `count` numbers, in a time that hardly grows with them."""
        if count // BLOCK < 2 * buckets:
            return extremes(self.values(count), buckets)
        rows = self.candidates(0, count)
        kept: Indices = rows[extremes(self.values()[rows], buckets)]
        return kept


WIDE = 4 * BLOCK
"""Indices of a pixel from which on the extremes of blocks will do."""


def outline(curve: Curve, steps: npt.NDArray[np.int64], first: int, last: int, pixels: int, *, log: bool) -> Indices:
    """Indices, first <= row < last, increasing, that keep the curve's look on an axis of so many pixels.

    Lowest and highest finite value of every pixel and both ends. `log`: the axis shows log(max(step, 1)). Where a pixel
    holds thousands of rows, its border is that of a block of `viz/stats/downsample.py`: at most a quarter
    of a pixel off.
    """
    if last <= first:
        return np.empty(0, np.intp)
    if last - first <= 2 * pixels or (not log and last - first < WIDE * pixels):
        return first + extremes(curve.values(last)[first:], pixels)
    if log:
        edges = np.geomspace(max(int(steps[first]), 1), max(int(steps[last - 1]), 1) + 1, pixels + 1)
        borders = first + np.searchsorted(steps[first:last], edges[1:-1])
    else:
        borders = np.linspace(first, last, pixels + 1)[1:-1].astype(np.intp)
    starts = np.unique(np.append(first, borders))
    starts = starts[starts < last]
    wide = np.flatnonzero(np.diff(np.append(starts, last)) >= WIDE)
    if not len(wide):
        return first + _extremes_from(curve.values(last)[first:], starts - first)
    begin = int(wide[0])  # all pixels behind it are as wide
    starts[max(begin, 1) :] = -(-starts[max(begin, 1) :] // BLOCK) * BLOCK
    rows = np.concatenate((np.arange(first, starts[begin]), curve.candidates(int(starts[begin]), last)))
    starts = np.unique(starts[starts < last])
    kept: Indices = rows[_extremes_from(curve.values()[rows], np.searchsorted(rows, starts))]
    return kept


def _extremes_from(values: Floats, starts: Indices) -> Indices:
    """Indices of the lowest and the highest finite value of each part; `starts`, from 0 on, are where parts begin."""
    finite = np.isfinite(values)
    part = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(values))))
    found = [np.flatnonzero(finite)[[0, -1]]] if finite.any() else []
    for ufunc, hidden in ((np.minimum, np.inf), (np.maximum, -np.inf)):
        shown = np.where(finite, values, hidden)
        places = np.flatnonzero(finite & (shown == ufunc.reduceat(shown, starts)[part]))
        found.append(places[np.unique(part[places], return_index=True)[1]])  # of equals the first
    kept: Indices = np.unique(np.concatenate(found))
    return kept


def numbers(values: npt.ArrayLike) -> list[Any]:
    """(N,) numbers as JSON has them: six significant digits, None for what is not finite."""
    array = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(array) & (array != 0)
    rounded = array.copy()
    with np.errstate(invalid="ignore", over="ignore"):
        exponent = np.floor(np.log10(np.abs(array[finite]))) - 5
        up, down = 10.0 ** np.maximum(exponent, 0), 10.0 ** np.maximum(-exponent, 0)  # both exact, but for giants
        rounded[finite] = np.round(array[finite] * down / up) * up / down
    rounded[finite & ~np.isfinite(rounded)] = 0.0  # below 1e-303
    known = np.isfinite(array)
    return [value if is_known else None for value, is_known in zip(rounded.tolist(), known.tolist(), strict=True)]


def number(value: float | None) -> float | None:
    """One number as `numbers` has it."""
    found: float | None = None if value is None else numbers([value])[0]
    return found


def finite(value: Any) -> Any:
    """The same, nested as it is, with None for every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value
