"""The running averages of a run over about the last `window` documents, brought up to date row by row."""

import numpy as np

from viz.record.reader import Columns
from viz.stats.averages import WINDOW, AverageWithError, DebiasedAverage
from viz.stats.downsample import Curve


class Averages:
    """What is drawn as lines over single documents. Each is an average over all rows so far, whatever part is shown."""

    def __init__(self, window: int = WINDOW) -> None:
        self.window = window
        self.loss, self.loss_error = Curve(), Curve()
        self.accuracy, self.accuracy_error = Curve(), Curve()
        self.gradient_norm = Curve()
        """Geometric: norms are drawn on a logarithmic axis."""
        self.tokens_per_second = Curve()
        """Average of tokens over average of seconds: a short document counts as little as it is long."""
        self.waited_share = Curve()
        """Of the time, 0...1."""
        self._loss, self._accuracy = AverageWithError(window), AverageWithError(window)
        self._norm, self._throughput = DebiasedAverage(window), DebiasedAverage(window)
        self._tokens, self._seconds, self._waited = (DebiasedAverage(window) for _ in range(3))

    def extend(self, columns: Columns) -> None:
        """Take in further rows, as `StoreReader.columns` gives them."""
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
        # Rows that were not told their seconds: the mean of their rates is what there is.
        mean_rate = self._throughput.extend(columns["throughput"])
        self.tokens_per_second.extend(np.where(np.isfinite(rate), rate, mean_rate))
