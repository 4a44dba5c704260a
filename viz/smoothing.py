"""Averages and reductions on arrays, pure: what makes a curve of 100,000 noisy documents without hiding one of them."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def debiased_average(values: npt.ArrayLike, window: int) -> Floats:
    """Exponential average over about the last `window` values, corrected for its start. (N,) -> (N,) float64.

    With a = 2 / (window + 1), which has the mean age and the variance of a plain mean of `window` values:

        s_t = (1 - a) s_{t-1} + a x_t,  s_0 = 0;   average_t = s_t / (1 - (1 - a)^t)

    The division (Kingma & Ba 2015, section 3) makes the first average equal to the first value. What is not finite is
    passed over as if it were not there: the average stays what it was (NaN before the first finite value).
    """
    array = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(array)
    kept = array[finite]
    if window < 1:
        raise ValueError(f"expected a window of 1 or more, found {window}")
    if not kept.size:
        return np.full(array.shape, np.nan)
    if window == 1:
        averages = kept
    else:
        decay = 1 - 2 / (window + 1)
        averages = _decayed_sums(kept, decay) * (1 - decay)
        averages /= -np.expm1(np.arange(1, kept.size + 1) * math.log(decay))
    latest = np.cumsum(finite) - 1  # index of the newest finite value at or before each place
    return np.where(latest >= 0, averages[np.maximum(latest, 0)], np.nan)


def _decayed_sums(values: Floats, decay: float) -> Floats:
    """S_t = decay * S_{t-1} + x_t, without a Python loop over the values.

    In rows of such a length that decay^-row is at most 1000: within a row S is a cumulative sum of x_i / decay^i, and
    no more than three of float64's sixteen digits are lost; only the carry from row to row is a loop.
    """
    row = max(1, min(values.size, int(math.log(1000) / -math.log(decay))))
    padded = np.zeros(-(-values.size // row) * row)
    padded[: values.size] = values
    powers = decay ** np.arange(row)
    sums = np.cumsum(padded.reshape(-1, row) / powers, axis=1) * powers
    carry = 0.0
    for line in sums:
        line += carry * decay * powers
        carry = float(line[-1])
    flat: Floats = sums.reshape(-1)[: values.size]
    return flat


def window_for(count: int) -> int:
    """How many documents to average over in a curve of `count`: a twentieth of it, at least 20 and at most 1000."""
    return min(max(count // 20, 20), 1000)


def describe_window(window: int) -> str:
    """The window in a reader's words."""
    return f"average over about the last {window:,}"


def extremes(values: npt.ArrayLike, buckets: int) -> npt.NDArray[np.intp]:
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
    kept: npt.NDArray[np.intp] = places[np.unique(chosen)]
    return kept


def value_range(values: Floats, floor: float | None, headroom: float = 0.22) -> tuple[float, float]:
    """A range from the lowest value (or `floor`) to the highest, with a share of itself above for the legend.

    What is further above the 98th percentile than twice that is above the median (and half of itself) is left out: one
    spike must not flatten a curve. Less than twenty values are too few to tell what a spike is.
    """
    low, high = float(values.min()) if floor is None else floor, float(values.max())
    if len(values) >= 20:
        middle, most = (float(level) for level in np.quantile(values, (0.5, 0.98), method="lower"))
        high = float(values[values <= most + max(2 * (most - middle), 0.5 * abs(most))].max())
    span = max(high - low, 0.02 * abs(high)) or 1.0
    return (low - 0.04 * span if floor is None else low), high + headroom * span


def averages_by_source(
    steps: npt.NDArray[Any], values: npt.NDArray[Any], sources: npt.NDArray[Any], most: int = 7
) -> list[tuple[str, npt.NDArray[Any], Floats]]:
    """(name, steps, debiased averages) of each source over its own documents, the most frequent first.

    Sources beyond the first `most` - 1 are taken together as `N others`, last. Documents without a source ('') are left
    out. Each source's window is `window_for` its own count of documents.
    """
    listed: list[str] = sources.tolist()
    names = list(dict.fromkeys(listed))
    code_of = {name: code for code, name in enumerate(names)}
    codes = np.fromiter(map(code_of.__getitem__, listed), np.intp, len(listed))
    counts = np.bincount(codes, minlength=len(names))
    order = [int(i) for i in np.argsort(-counts, kind="stable") if names[i]]
    alone = order if len(order) <= most else order[: most - 1]
    groups = [(names[i], codes == i) for i in alone]
    if len(alone) < len(order):
        others = order[len(alone) :]
        groups.append((f"{len(others)} others", np.isin(codes, others)))
    return [
        (name, steps[chosen], debiased_average(values[chosen], window_for(int(chosen.sum()))))
        for name, chosen in groups
    ]
