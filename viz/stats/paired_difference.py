"""The statistics of a paired comparison: matching documents, the difference and its interval, running averages.

Losses are pooled by sums and counts: `sums` are a document's nats (or bits), `weights` its predictions (or bytes).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from common.debiased_average import Floats
from viz.stats.averages import Indices, debiased_average, squared_weights
from viz.stats.series import rows_by_source

FEWEST = 20
"""Documents needed for an interval."""
BATCH = 50
"""Consecutive documents whose sum is treated as independent of the next batch's."""
FEWEST_BATCHES = 10


@dataclass(frozen=True)
class Difference:
    """A's loss minus B's over `documents` shared documents of a source ('' if unknown, 'all' for all).

    `half_width`: of the 95 % interval around `value`; None for fewer than `FEWEST` documents.
    """

    name: str
    value: float
    half_width: float | None
    documents: int


@dataclass(frozen=True)
class RunningAverage:
    """Running average over about the last `window` documents, and 2 standard errors: (N,) each, in order of steps.

    `band` is NaN at the first document, whose error is unknown.
    """

    steps: npt.NDArray[np.int64]
    average: Floats
    band: Floats
    window: int


def match(hashes_a: npt.NDArray[np.bytes_], hashes_b: npt.NDArray[np.bytes_]) -> tuple[Indices, Indices]:
    """Return the indices of the same texts in A and in B, in A's order: the k-th occurrence in A with the k-th in B."""
    codes = np.unique(np.concatenate((hashes_a, hashes_b)), return_inverse=True)[1]
    keys_a, keys_b = (_numbered(part) for part in np.split(codes, [len(hashes_a)]))
    _, places_a, places_b = np.intersect1d(keys_a, keys_b, assume_unique=True, return_indices=True)
    order = np.argsort(places_a)
    return places_a[order], places_b[order]


def _numbered(codes: Indices) -> npt.NDArray[np.int64]:
    """Combine each code and its number of earlier occurrences into one number."""
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]][: len(ordered)])
    before = np.arange(len(codes)) - np.repeat(starts, np.diff(np.r_[starts, len(codes)]))
    keys = np.empty(len(codes), dtype=np.int64)
    keys[order] = ordered * 2**32 + before
    return keys


PooledLosses = Sequence[tuple[Floats, Floats]]  # (sums, weights) of A, then of B: (N,) each, the same documents


def estimate(pairs: PooledLosses, name: str = "") -> Difference:
    """Return sum(sums_a) / sum(weights_a) - sum(sums_b) / sum(weights_b), and its 95 % interval.

    Documents must be in order of steps.

    The contributions of documents to the linearized difference (Cochran, Sampling Techniques, 1977, section 6.4) are
    summed over batches of `BATCH` neighbours (at least `FEWEST_BATCHES` batches), because neighbours are similar: so
    are the weights of their models. The scatter of the sums is measured against the line between adjacent batches:

        s^2 = 2/3 * mean of (S_k - (S_{k-1} + S_{k+1}) / 2)^2

    (Gasser, Sroka & Jennen-Steinmetz, Biometrika 73(3), 1986), so that a difference that changes during the run, such
    as a slower warm-up, is part of the difference and not of its error. Student's t has 18/35 (batches - 2) degrees of
    freedom, from the variance of s^2 (same paper).

    Limits, by simulation (tests/viz/stats/test_paired_difference.py): 4 to 7 % false alarms at 1,000 documents whose
    noise is independent or an AR(1) with phi up to 0.8, for which treating documents as independent gives up to 50 %;
    in real pairs phi is below 0.1. If batches are short and neighbours are similar, the interval is too narrow: 100
    documents with phi 0.8 give 15 % false alarms, 40 with phi 0.5 give 10 %. The interval describes this pair of runs;
    another seed may differ by more.
    """
    count = len(pairs[0][0])
    ratios = [float(sums.sum() / weights.sum()) for sums, weights in pairs]
    value = ratios[0] - ratios[1]
    if count < FEWEST:
        return Difference(name, value, None, count)
    each_a, each_b = (
        (sums - ratio * weights) / weights.sum() for (sums, weights), ratio in zip(pairs, ratios, strict=True)
    )
    batches = max(FEWEST_BATCHES, count // BATCH)
    sums = np.add.reduceat(each_a - each_b, np.arange(batches) * count // batches)
    apart = sums[1:-1] - (sums[:-2] + sums[2:]) / 2
    variance = batches * 2 / 3 * float(np.square(apart).mean())
    return Difference(name, value, t_quantile(18 / 35 * (batches - 2)) * math.sqrt(variance), count)


def t_quantile(degrees: float) -> float:
    """Return the 97.5 % quantile of Student's t, by expansion around the normal one (Abramowitz & Stegun, 26.7.5).

    The error is below 0.7 % for at least 4 degrees of freedom.
    """
    z = 1.959964
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, 1))


def by_source(pairs: PooledLosses, sources: npt.NDArray[Any]) -> tuple[Difference, ...]:
    """Return the `estimate` for each source's documents, the most frequent source first."""
    found = [
        estimate([(sums[rows], weights[rows]) for sums, weights in pairs], name)
        for name, rows in rows_by_source(sources)
    ]
    return tuple(sorted(found, key=lambda difference: -difference.documents))


def running(steps: npt.NDArray[np.int64], runs: PooledLosses, window: int) -> tuple[RunningAverage, float]:
    """Return the running average of one run's loss, or of A - B for two, and the standard error over all steps.

    The average is an average of sums divided by one of weights. Its variance is that of documents around it, times the
    sum of the squared weights of the average (as if documents were independent), times (1 + r) / (1 - r) because
    neighbours are similar, with r their correlation (an AR(1): Bartlett, J. R. Stat. Soc. Suppl. 8, 1946). The standard
    error over all steps treats documents as independent around the running average: what a run learns is no error.
    """
    averages, parts, total = [], [], 0.0
    for sums, weights in runs:
        weight = debiased_average(weights, window)
        averages.append(debiased_average(sums, window) / weight)
        deviations = sums - averages[-1] * weights
        parts.append(deviations / weight)
        total += float(np.square(deviations).sum()) / float(weights.sum()) ** 2
    average, part = (averages[0], parts[0]) if len(runs) == 1 else (averages[0] - averages[1], parts[0] - parts[1])
    shares = squared_weights(np.arange(1, len(steps) + 1), window)
    squares = np.full(len(steps), np.nan)
    # Each document is part of its own average, which makes its deviation smaller.
    squares[1:] = np.square(part[1:]) / (1 - shares[1:])
    power = float(np.square(part).sum())
    alike = min(max(float(part[1:] @ part[:-1]) / power, 0.0), 0.99) if power else 0.0
    variance = debiased_average(squares, window) * shares * (1 + alike) / (1 - alike)
    return RunningAverage(steps, average, 2 * np.sqrt(variance), window), math.sqrt(total)
