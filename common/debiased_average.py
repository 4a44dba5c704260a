"""Exponential averages without the bias towards zero at the start."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class DebiasedAverage:
    """Exponential average over about the last `window` values, without bias at the start.

    With a = 2 / (window + 1), which gives the mean age and the variance of a plain mean of `window` values:

        m_t = (1 - a) m_{t-1} + a x_t,  m_0 = 0;   average_t = m_t / (1 - (1 - a)^t)

    The division (Kingma & Ba 2015, section 3) makes the first average equal to the first value. Values that are not
    finite are ignored: the average does not change (NaN before the first finite value).
    """

    def __init__(self, window: int, state: Sequence[float] = (0.0, 0.0)) -> None:
        """
        Args:
            window: number of values, at least 1.
            state: the result of `state()`, to continue an earlier average.
        """
        if window < 1:
            raise ValueError(f"expected a window of 1 or more, found {window}")
        self._rate = 2 / (window + 1)
        self._total, self._weight = state

    @property
    def value(self) -> float:
        """The current average; NaN before the first finite value."""
        return self._total / self._weight if self._weight else math.nan

    def add(self, value: float) -> None:
        """Add one value."""
        if math.isfinite(value):
            self._total += (value - self._total) * self._rate
            self._weight += (1.0 - self._weight) * self._rate

    def extend(self, values: npt.ArrayLike) -> Floats:
        """Add (N,) values and return the average after each, (N,) float64."""
        array = np.asarray(values, dtype=np.float64)
        finite = np.isfinite(array)
        kept, decay = array[finite], 1 - self._rate
        averages = np.array([self.value])
        if kept.size:
            totals = kept if decay == 0 else _decayed_sums(self._rate * kept, decay, self._total)
            weights = 1 - (1 - self._weight) * decay ** np.arange(1, kept.size + 1)
            averages = np.append(averages, totals / weights)
            self._total, self._weight = float(totals[-1]), float(weights[-1])
        latest: Floats = averages[np.cumsum(finite)]  # the average after the latest finite value so far
        return latest

    def state(self) -> list[float]:
        """Return what the constructor takes as `state`."""
        return [self._total, self._weight]


def _decayed_sums(values: Floats, decay: float, before: float) -> Floats:
    """S_t = decay * S_{t-1} + x_t, starting from S = `before`, without a Python loop over the values.

    The values are split into rows so short that decay^-row is at most 1000. Within a row, S is a cumulative sum of
    x_i / decay^i, which loses at most three of float64's sixteen digits. Only the carry between rows needs a loop.
    """
    row = max(1, min(values.size, int(math.log(1000) / -math.log(decay))))
    padded = np.zeros(-(-values.size // row) * row)
    padded[: values.size] = values
    powers = decay ** np.arange(row)
    sums = np.cumsum(padded.reshape(-1, row) / powers, axis=1) * powers
    carry = before
    for line in sums:
        line += carry * decay * powers
        carry = float(line[-1])
    flat: Floats = sums.reshape(-1)[: values.size]
    return flat
