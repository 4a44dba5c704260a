"""Downsampling for charts and the page: growing arrays, extremes per pixel, and numbers as JSON."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from common.debiased_average import Floats
from viz.stats.averages import Indices, extremes

BLOCK = 256  # rows whose lowest and highest values are stored
WIDE = 4 * BLOCK  # rows per pixel from which the extremes of blocks are precise enough


class Growing:
    """A one-dimensional array that grows at its end. Its capacity doubles when full, so rows are rarely copied."""

    def __init__(self, dtype: Any = np.float64) -> None:
        self._buffer = np.empty(0, dtype)
        self.size = 0

    def extend(self, values: npt.NDArray[Any]) -> None:
        size = self.size + len(values)
        if size > len(self._buffer):
            larger = np.empty(2 * size, self._buffer.dtype)
            larger[: self.size] = self.values()
            self._buffer = larger
        self._buffer[self.size : size] = values
        self.size = size

    def values(self, count: int | None = None) -> npt.NDArray[Any]:
        """Return the first `count` values, or all: a view, valid until the next `extend`."""
        return self._buffer[: self.size if count is None else count]


class Curve(Growing):
    """Numbers that are drawn as a line, with the lowest and highest of every `BLOCK` rows."""

    def __init__(self) -> None:
        super().__init__()
        self._lowest, self._highest = Growing(np.intp), Growing(np.intp)  # one row index per complete block

    def extend(self, values: npt.NDArray[Any]) -> None:
        super().extend(values)
        done, complete = self._lowest.size, self.size // BLOCK
        blocks = self.values()[done * BLOCK : complete * BLOCK].reshape(-1, BLOCK)
        starts = np.arange(done, complete) * BLOCK
        finite = np.isfinite(blocks)
        self._lowest.extend(starts + np.where(finite, blocks, np.inf).argmin(axis=1))
        self._highest.extend(starts + np.where(finite, blocks, -np.inf).argmax(axis=1))

    def candidates(self, first: int, count: int) -> Indices:
        """Return increasing rows, first <= row < count, that include the extremes.

        These are both ends, the lowest and highest of each complete block, and all rows outside these blocks.
        """
        begin = min(-(-first // BLOCK), count // BLOCK)
        end = max(begin, count // BLOCK)
        ends = (np.arange(first, min(begin * BLOCK, count)), np.arange(max(end * BLOCK, first), count))
        inner = (self._lowest.values(end)[begin:], self._highest.values(end)[begin:])
        rows = np.concatenate((*ends, *inner, [first, count - 1]))
        rows.sort()
        kept: Indices = rows[np.append(True, rows[1:] != rows[:-1])]
        return kept

    def outline(self, count: int, buckets: int) -> Indices:
        """Return `extremes` of the first `count` numbers, in a time that hardly depends on `count`."""
        if count // BLOCK < 2 * buckets:
            return extremes(self.values(count), buckets)
        rows = self.candidates(0, count)
        kept: Indices = rows[extremes(self.values()[rows], buckets)]
        return kept


def outline(curve: Curve, steps: npt.NDArray[np.int64], first: int, last: int, pixels: int, *, log: bool) -> Indices:
    """Return increasing rows, first <= row < last, with which the curve looks the same on an axis of `pixels` pixels.

    These are the lowest and highest finite value of each pixel, and both ends. `log`: the axis shows
    log(max(step, 1)). The border of a pixel with thousands of rows is that of a block, at most a quarter pixel off.
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
    begin = int(wide[0])  # all later pixels are at least as wide
    starts[max(begin, 1) :] = -(-starts[max(begin, 1) :] // BLOCK) * BLOCK
    rows = np.concatenate((np.arange(first, starts[begin]), curve.candidates(int(starts[begin]), last)))
    starts = np.unique(starts[starts < last])
    kept: Indices = rows[_extremes_from(curve.values()[rows], np.searchsorted(rows, starts))]
    return kept


def _extremes_from(values: Floats, starts: Indices) -> Indices:
    """Return indices of the lowest and highest finite value of each part; parts begin at `starts`, the first at 0."""
    finite = np.isfinite(values)
    part = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(values))))
    found = [np.flatnonzero(finite)[[0, -1]]] if finite.any() else []
    for ufunc, hidden in ((np.minimum, np.inf), (np.maximum, -np.inf)):
        shown = np.where(finite, values, hidden)
        places = np.flatnonzero(finite & (shown == ufunc.reduceat(shown, starts)[part]))
        found.append(places[np.unique(part[places], return_index=True)[1]])  # of equal values the first
    kept: Indices = np.unique(np.concatenate(found))
    return kept


def numbers(values: npt.ArrayLike) -> list[Any]:
    """Convert (N,) numbers for JSON: six significant digits, None for non-finite ones."""
    array = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(array) & (array != 0)
    rounded = array.copy()
    with np.errstate(invalid="ignore", over="ignore"):
        exponent = np.floor(np.log10(np.abs(array[finite]))) - 5
        up, down = (
            10.0 ** np.maximum(exponent, 0),
            10.0 ** np.maximum(-exponent, 0),
        )  # exact for most exponents
        rounded[finite] = np.round(array[finite] * down / up) * up / down
    rounded[finite & ~np.isfinite(rounded)] = 0.0  # below 1e-303
    known = np.isfinite(array)
    return [value if is_known else None for value, is_known in zip(rounded.tolist(), known.tolist(), strict=True)]


def number(value: float | None) -> float | None:
    """Convert one number like `numbers`."""
    found: float | None = None if value is None else numbers([value])[0]
    return found


def finite(value: Any) -> Any:
    """Return a nested value with None for every non-finite number."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value
