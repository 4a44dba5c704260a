"""Averages and reductions on arrays, pure: what makes a curve of 100,000 noisy documents without hiding one of them."""

import math

import numpy as np
import numpy.typing as npt

from common.debiased_average import DebiasedAverage, Floats

Indices = npt.NDArray[np.intp]
WINDOW = 200
"""Documents that the averages of a chart reach back over: fixed, so that what was drawn once is never drawn anew."""


def debiased_average(values: npt.ArrayLike, window: int = WINDOW) -> Floats:
    """(N,) values -> (N,) float64, their `DebiasedAverage`."""
    return DebiasedAverage(window).extend(values)


class AverageWithError:
    """A `DebiasedAverage` and its standard error, taking the values as independent (documents are read shuffled).

    With the weights w_i of the average, and m_1 and m_2 the averages of x and of x^2:

        error^2 = (m_2 - m_1^2) * sum w_i^2 / (1 - sum w_i^2)

    the weighted sample variance without bias, times the sum of the squared weights; NaN for the first value.
    """

    def __init__(self, window: int = WINDOW) -> None:
        self._window = window
        self._count = 0
        self._mean, self._square = DebiasedAverage(window), DebiasedAverage(window)
        self._middle = math.nan  # what squares are taken around: near the values, so that no digits are lost

    def extend(self, values: npt.ArrayLike) -> tuple[Floats, Floats]:
        """(N,) more values -> average and standard error behind each, (N,) float64 both."""
        array = np.asarray(values, dtype=np.float64)
        finite = np.isfinite(array)
        if math.isnan(self._middle) and finite.any():
            self._middle = float(array[finite][0])
        numbers = self._count + np.cumsum(finite)
        self._count += int(finite.sum())
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            mean = self._mean.extend(array - self._middle)
            square = self._square.extend((array - self._middle) ** 2)
            weights = squared_weights(numbers, self._window)
            error = np.sqrt(np.maximum(square - mean**2, 0) * weights / (1 - weights))
        return mean + self._middle, np.where(numbers > 1, error, np.nan)


def squared_weights(count: npt.ArrayLike, window: int = WINDOW) -> Floats:
    """Sum of the squared weights of a `DebiasedAverage` of `count` values: 1 for one, 1 / window for many."""
    decay = 1 - 2 / (window + 1)
    powers = decay ** np.asarray(count, dtype=np.float64)
    weights: Floats = (1 - decay) / (1 + decay) * (1 + powers) / (1 - powers)
    return weights


def extremes(values: npt.ArrayLike, buckets: int) -> Indices:
    """Indices, increasing, that keep a curve's look at `buckets` pixels: lowest and highest of each, first and last.

    A spike survives with its own index, however many values share its pixel. What is not finite is left out. At most
    2 * buckets + 2 indices; all finite values if they are no more than that.
    """
    array = np.asarray(values, dtype=np.float64)
    places = np.flatnonzero(np.isfinite(array))
    if places.size <= 2 * buckets + 2:
        return places
    width = -(-places.size // buckets)
    low = np.full((-(-places.size // width), width), np.inf)
    low.reshape(-1)[: places.size] = array[places]
    high = np.where(np.isinf(low), -np.inf, low)
    starts = np.arange(low.shape[0]) * width
    chosen = np.concatenate(([0, places.size - 1], starts + low.argmin(axis=1), starts + high.argmax(axis=1)))
    kept: Indices = places[np.unique(chosen)]
    return kept
