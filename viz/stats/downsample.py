"""Arrays that grow, and curves made of them, which find the extremes of a part without reading all of it."""

from typing import Any

import numpy as np
import numpy.typing as npt

from viz.stats.averages import extremes

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

    def candidates(self, first: int, count: int) -> npt.NDArray[np.intp]:
        """Rows, first <= row < count, increasing: both ends, lowest and highest of each block that lies within, and all
        that lie in no such block."""
        begun = min(-(-first // BLOCK), count // BLOCK)
        whole = max(begun, count // BLOCK)
        ends = (np.arange(first, min(begun * BLOCK, count)), np.arange(max(whole * BLOCK, first), count))
        inner = (self._lowest.values(whole)[begun:], self._highest.values(whole)[begun:])
        rows = np.concatenate((*ends, *inner, [first, count - 1]))
        rows.sort()
        kept: npt.NDArray[np.intp] = rows[np.append(True, rows[1:] != rows[:-1])]
        return kept

    def outline(self, count: int, buckets: int) -> npt.NDArray[np.intp]:
        """`smoothing.extremes` of the first `count` numbers, in a time that hardly grows with them."""
        if count // BLOCK < 2 * buckets:
            return extremes(self.values(count), buckets)
        rows = self.candidates(0, count)
        kept: npt.NDArray[np.intp] = rows[extremes(self.values()[rows], buckets)]
        return kept
