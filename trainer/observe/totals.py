"""The run's running numbers: what the bar shows and the closing lines sum up."""

import math
import statistics
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from trainer.observe.token_counts import TokenCounts

WINDOW = 100
"""Documents that the averages of the bar and of the closing lines are taken over."""


def usual_mean(seconds: Collection[float]) -> float:
    """The mean of some durations without those that something else held up: a network was away, a laptop asleep.

    Those are the ones of more than 20 times the lower median.
    """
    middle = sorted(seconds)[(len(seconds) - 1) // 2]
    return statistics.fmean(one for one in seconds if one <= 20 * middle)


def format_time(seconds: float) -> str:
    """`45.0s`, `37.8m`, `2.5h`."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    if seconds < 3600:
        return f"{seconds / 60:.1f}m"
    return f"{seconds / 3600:.1f}h"


def format_bytes(count: int) -> str:
    """`35.2 kB`, `165.4 MB`, `1.5 GB`, `2.0 TB`."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


class DebiasedAverage:
    """Exponential average over about the last `WINDOW` values, divided by the weight they have so far.

    m_t = (1 - a) m_{t-1} + a x_t, average = m_t / (1 - (1 - a)^t), a = 1 / WINDOW (the bias correction of Adam, arXiv
    1412.6980, section 3). Values that are not finite are left out.
    """

    def __init__(self, total: float = 0.0, weight: float = 0.0) -> None:
        self._total = total
        self._weight = weight

    def add(self, value: float) -> None:
        if math.isfinite(value):
            self._total += (value - self._total) / WINDOW
            self._weight += (1.0 - self._weight) / WINDOW

    @property
    def value(self) -> float:
        return self._total / self._weight if self._weight else math.nan

    def state(self) -> list[float]:
        return [self._total, self._weight]


class Tally:
    """Sums and averages over the documents trained so far; goes with the checkpoint."""

    def __init__(self) -> None:
        self.documents = 0
        self.tokens = 0
        self.seconds = 0.0
        self.waited = 0.0
        self.loss = DebiasedAverage()
        self.accuracy = DebiasedAverage()
        self._tokens = DebiasedAverage()
        self._seconds = DebiasedAverage()
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=WINDOW)
        self._texts: deque[tuple[float, int, list[int]]] = deque(maxlen=WINDOW)
        self._token_counts = TokenCounts()
        self.unigram_entropy = math.nan
        """Of all tokens trained on, nats per token: what a model loses that only knows how frequent each one is."""

    def add(
        self, ids: list[int], predicted_bytes: int, loss: float, accuracy: float, seconds: float, waited: float
    ) -> None:
        """Count one trained document. `loss` in nats per token, `seconds` since the step before."""
        self.documents += 1
        self.tokens += len(ids) - 1
        self.seconds += seconds
        self.waited += waited
        self.loss.add(loss)
        self.accuracy.add(accuracy)
        self._tokens.add(len(ids) - 1)
        self._seconds.add(seconds)
        self.unigram_entropy = self._token_counts.add(ids)
        if math.isfinite(loss):
            if len(self._first) < WINDOW:
                self._first.append(loss)
            self._last.append(loss)
            self._texts.append((loss * (len(ids) - 1), predicted_bytes, ids))

    @property
    def tokens_per_second(self) -> float:
        """Predictions a second over about the last `WINDOW` documents, waits included."""
        return self._tokens.value / self._seconds.value if self._seconds.value else math.nan

    def first_and_last(self) -> tuple[float, float, int]:
        """Mean loss of the first and of the last n documents, and n: `WINDOW`, or half the run where that is less."""
        n = max(1, min(WINDOW, self.documents // 2, len(self._first), len(self._last)))
        return _mean(self._first[:n]), _mean(list(self._last)[-n:]), n

    def bits_per_byte(self) -> tuple[float, int]:
        """Bits that the model needs for a byte of the last n documents' text, and n."""
        count = sum(number for _, number, _ in self._texts)
        nats = sum(nats for nats, _, _ in self._texts)
        return (nats / math.log(2) / count if count else math.nan), len(self._texts)

    def speed(self) -> tuple[float, float]:
        """Predictions a second over the whole run, and the share of its time that was waited for documents."""
        if not self.seconds:
            return math.nan, math.nan
        return self.tokens / self.seconds, self.waited / self.seconds

    def last_ids(self) -> list[list[int]]:
        """The ids of the documents that `bits_per_byte` speaks of."""
        return [ids for _, _, ids in self._texts]

    def state_dict(self) -> dict[str, Any]:
        averages = (self.loss, self.accuracy, self._tokens, self._seconds)
        return {
            "totals": [self.documents, self.tokens, self.seconds, self.waited],
            "averages": [average.state() for average in averages],
            "first": self._first,
            "last": list(self._last),
            "texts": [list(text) for text in self._texts],
            "token_counts": self._token_counts.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.documents, self.tokens, self.seconds, self.waited = state["totals"]
        averages = (DebiasedAverage(*numbers) for numbers in state["averages"])
        self.loss, self.accuracy, self._tokens, self._seconds = averages
        self._first = list(state["first"])
        self._last = deque(state["last"], maxlen=WINDOW)
        self._texts = deque(((nats, count, ids) for nats, count, ids in state["texts"]), maxlen=WINDOW)
        self._token_counts.load_state_dict(state["token_counts"])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
