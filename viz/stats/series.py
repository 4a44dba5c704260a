"""The steps of a run in memory and their running averages, updated incrementally: the data of a chart.

Each derived number of a row depends only on the rows up to it. The run as of an earlier step is therefore the beginning
of these arrays, and later rows never change what a chart has shown.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from common.debiased_average import DebiasedAverage, Floats
from viz.record.reader import Columns, StoreReader
from viz.stats.averages import WINDOW, AverageWithError, Indices
from viz.stats.downsample import Curve, Growing

READ_AT_ONCE = 50_000  # rows: without a write-ahead log, the writer waits while they are read
FEWEST_OF_SOURCE = 20  # documents of a source before its average counts as usual


class Averages:
    """The running averages that a chart draws as lines, each over all rows so far."""

    def __init__(self, window: int = WINDOW) -> None:
        self.window = window
        self.loss, self.loss_error = Curve(), Curve()
        self.accuracy, self.accuracy_error = Curve(), Curve()
        self.gradient_norm = Curve()
        """Geometric mean, since norms are drawn on a logarithmic axis."""
        self.tokens_per_second = Curve()
        """Average of tokens divided by average of seconds, so that documents count by their length."""
        self.waited_share = Curve()
        """Share of the time spent waiting for data, 0...1."""
        self._loss, self._accuracy = AverageWithError(window), AverageWithError(window)
        self._norm, self._throughput = DebiasedAverage(window), DebiasedAverage(window)
        self._tokens, self._seconds, self._waited = (DebiasedAverage(window) for _ in range(3))

    def extend(self, columns: Columns) -> None:
        """Add rows, as returned by `StoreReader.columns`."""
        for curve, values in zip(
            (self.loss, self.loss_error, self.accuracy, self.accuracy_error),
            (*self._loss.extend(columns["loss"]), *self._accuracy.extend(columns["accuracy"])),
            strict=True,
        ):
            curve.extend(values)
        norms = columns["gradient_norm"]
        with np.errstate(divide="ignore", invalid="ignore"):
            self.gradient_norm.extend(np.exp(self._norm.extend(np.log(np.where(norms > 0, norms, np.nan)))))
            seconds = self._seconds.extend(columns["seconds"])
            rate = self._tokens.extend(columns["tokens"]) / seconds
            self.waited_share.extend(self._waited.extend(columns["seconds_waited"]) / seconds)
        # Without seconds, only the mean of the rates is known.
        mean_rate = self._throughput.extend(columns["throughput"])
        self.tokens_per_second.extend(np.where(np.isfinite(rate), rate, mean_rate))


class UsualLoss:
    """The usual loss of one source: the running average over its documents."""

    def __init__(self) -> None:
        self._average = DebiasedAverage(WINDOW)
        self._known = 0

    def extend(self, losses: Floats) -> tuple[Floats, Floats]:
        """Add (N,) losses; return the average after each, and the usual loss before it (NaN if too few were read)."""
        before, known = self._average.value, self._known
        averages = self._average.extend(losses)
        usual = np.append(before, averages[:-1])
        finite = np.isfinite(losses)
        self._known += int(finite.sum())
        usual[known + np.cumsum(finite) - finite < FEWEST_OF_SOURCE] = np.nan
        return averages, usual


class SourceSeries:
    """The documents of one source: their rows, and the average of their losses after each."""

    def __init__(self) -> None:
        self.rows = Growing(np.intp)
        self.average = Curve()
        self._usual = UsualLoss()

    def extend(self, rows: Indices, losses: Floats) -> Floats:
        """Add documents; return the usual loss before each (NaN if too few of the source were read)."""
        averages, usual = self._usual.extend(losses)
        self.rows.extend(rows)
        self.average.extend(averages)
        return usual


def rows_by_source(names: npt.NDArray[Any]) -> Iterator[tuple[str, Indices]]:
    """Yield each of (N,) names, in order of first appearance, with its rows in order."""
    known: dict[str, int] = {}
    codes = np.fromiter((known.setdefault(name, len(known)) for name in names.tolist()), np.intp, len(names))
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(known) + 1))
    for name, begin, end in zip(known, bounds[:-1], bounds[1:], strict=True):
        yield name, order[begin:end]


class Series:
    """All rows of one rank so far: the columns of the store, and the curves derived from them."""

    def __init__(self) -> None:
        self._columns: dict[str, Growing] = {}
        self.size = 0
        self.averages = Averages()
        self.usual = Growing()
        """The usual loss of a document's source before it, nats per token; NaN if unknown."""
        self.excess = Growing()
        """How far a document is above the usual loss of its source, nats per token; NaN if unknown."""
        self.sources: dict[str, SourceSeries] = {}

    def read(self, store: StoreReader) -> None:
        """Add the rows of a store that are new."""
        known = int(self["steps"][-1]) + 1 if self.size else 0
        for begin in range(known, max(store.documents_trained(), known + 1), READ_AT_ONCE):
            self.extend(store.columns(begin, begin + READ_AT_ONCE))

    def extend(self, columns: Columns) -> None:
        """Add rows, as returned by `StoreReader.columns`."""
        for name, values in columns.items():
            if name not in self._columns:
                self._columns[name] = Curve() if values.dtype == np.float64 else Growing(values.dtype)
            self._columns[name].extend(values)
        first, self.size = self.size, self.size + len(columns["steps"])
        self.averages.extend(columns)
        self._extend_sources(first, columns["source"], columns["loss"])

    def _extend_sources(self, first: int, names: npt.NDArray[Any], losses: Floats) -> None:
        usual = np.full(len(names), np.nan)
        for name, rows in rows_by_source(names):
            usual[rows] = self.sources.setdefault(name, SourceSeries()).extend(first + rows, losses[rows])
        self.usual.extend(usual)
        with np.errstate(invalid="ignore"):
            self.excess.extend(losses - usual)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """Return a column: (N,), a view, valid until the next `extend`."""
        return self._columns[name].values()

    def column(self, name: str) -> Curve:
        """Return a column of numbers as a curve."""
        curve = self._columns[name]
        assert isinstance(curve, Curve)
        return curve

    def columns(self, count: int | None = None) -> Columns:
        """Return the first `count` rows of all columns, or all rows."""
        return {name: column.values(count) for name, column in self._columns.items()}

    def rows_below(self, step: int) -> int:
        """Return the number of rows with lower steps."""
        return int(np.searchsorted(self["steps"], step)) if self.size else 0
