"""Running averages with their standard errors, and the extremes of a curve."""

import math

import numpy as np
import numpy.typing as npt

from common.debiased_average import DebiasedAverage, Floats

Indices = npt.NDArray[np.intp]
WINDOW = 200
"""Documents in the averages of a chart: fixed, so that a longer run does not change what was drawn before."""


def debiased_average(values: npt.ArrayLike, window: int = WINDOW) -> Floats:
    """Return the `DebiasedAverage` of (N,) values after each: (N,) float64."""
    return DebiasedAverage(window).extend(values)


class AverageWithError:
    """A `DebiasedAverage` and its standard error, treating the values as independent (documents are shuffled).

    With the weights w_i of the average, and m_1 and m_2 the averages of x and of x^2:

        error^2 = (m_2 - m_1^2) * sum w_i^2 / (1 - sum w_i^2)

    This is the unbiased weighted sample variance times the sum of the squared weights; NaN for the first value.
    """

    def __init__(self, window: int = WINDOW) -> None:
        self._window = window
        self._count = 0
        self._mean, self._square = DebiasedAverage(window), DebiasedAverage(window)
        self._middle = math.nan  # subtracted before squaring, so that no digits are lost

    def extend(self, values: npt.ArrayLike) -> tuple[Floats, Floats]:
        """Add (N,) values; return the average and its standard error after each: (N,) float64 both."""
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
    """Return the sum of squared weights of a `DebiasedAverage` of `count` values: 1 for one, 1 / window for many."""
    decay = 1 - 2 / (window + 1)
    powers = decay ** np.asarray(count, dtype=np.float64)
    weights: Floats = (1 - decay) / (1 + decay) * (1 + powers) / (1 - powers)
    return weights


def extremes(values: npt.ArrayLike, buckets: int) -> Indices:
    """Return increasing indices of values with which a curve looks the same at a width of `buckets` pixels.

    These are the lowest and highest value of each pixel, the first and the last: at most 2 * buckets + 2, or all if
    there are no more. Non-finite values are excluded.
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
