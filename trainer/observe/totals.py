"""The running totals of a run: tokens, averages, and the time spent on measurements.

The progress bar and the closing lines read them.
"""

import contextlib
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from common.debiased_average import DebiasedAverage

WINDOW = 100
"""Number of documents in the averages of the progress bar and the closing lines."""
_SPAN = 2 * WINDOW - 1
"""The window of a `DebiasedAverage` in which each document has the weight 1 / WINDOW."""


class Tally:
    """Sums and averages over the documents trained on so far. Part of the checkpoint."""

    def __init__(self) -> None:
        self.documents = 0
        self.tokens = 0
        self.seconds = 0.0
        self.waited = 0.0
        self.loss = DebiasedAverage(_SPAN)
        self.accuracy = DebiasedAverage(_SPAN)
        self._tokens = DebiasedAverage(_SPAN)
        self._seconds = DebiasedAverage(_SPAN)
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=WINDOW)
        self._texts: deque[tuple[float, int, list[int]]] = deque(maxlen=WINDOW)
        self._token_counts = TokenCounts()
        self.unigram_entropy = math.nan
        """Of all tokens trained on, nats per token: the loss of a model that knows only their frequencies."""

    def add(
        self, ids: list[int], predicted_bytes: int, loss: float, accuracy: float, seconds: float, waited: float
    ) -> None:
        """Add one document. `loss` in nats per token, `seconds` since the previous step."""
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
        """Predictions per second over about the last `WINDOW` documents, including waits."""
        return self._tokens.value / self._seconds.value if self._seconds.value else math.nan

    def first_and_last(self) -> tuple[float, float, int]:
        """Return the mean loss of the first and of the last n documents, and n: `WINDOW`, or less in a short run."""
        n = max(1, min(WINDOW, self.documents // 2, len(self._first), len(self._last)))
        return _mean(self._first[:n]), _mean(list(self._last)[-n:]), n

    def bits_per_byte(self) -> tuple[float, int]:
        """Return the model's bits per byte on the last n documents, and n."""
        count = sum(number for _, number, _ in self._texts)
        nats = sum(nats for nats, _, _ in self._texts)
        return (nats / math.log(2) / count if count else math.nan), len(self._texts)

    def speed(self) -> tuple[float, float]:
        """Return the predictions per second of the whole run, and the share of its time spent waiting for documents."""
        if not self.seconds:
            return math.nan, math.nan
        return self.tokens / self.seconds, self.waited / self.seconds

    def last_ids(self) -> list[list[int]]:
        """Return the ids of the documents of `bits_per_byte`."""
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
        averages = (DebiasedAverage(_SPAN, numbers) for numbers in state["averages"])
        self.loss, self.accuracy, self._tokens, self._seconds = averages
        self._first = list(state["first"])
        self._last = deque(state["last"], maxlen=WINDOW)
        self._texts = deque(((nats, count, ids) for nats, count, ids in state["texts"]), maxlen=WINDOW)
        self._token_counts.load_state_dict(state["token_counts"])


class TokenCounts:
    """Counts of the tokens trained on, and the entropy of their frequencies.

    H = -sum_i p_i ln p_i with p_i = c_i / N (Shannon 1948, section 6), computed as ln N - (sum_i c_i ln c_i) / N, so
    that the cost of a document depends on its length and not on the size of the vocabulary.
    """

    def __init__(self) -> None:
        self._counts = np.zeros(0, dtype=np.int64)
        self._total = 0
        self._sum = 0.0  # of c ln c

    def add(self, ids: Sequence[int]) -> float:
        """Add the (T,) ids of a document. Returns the entropy of all tokens so far, nats per token."""
        seen, times = np.unique(np.asarray(ids, dtype=np.int64), return_counts=True)
        if seen[-1] >= len(self._counts):
            self._counts = np.pad(self._counts, (0, int(seen[-1]) + 1 - len(self._counts)))
        before = self._counts[seen]
        after = before + times
        self._counts[seen] = after
        self._total += len(ids)
        self._sum += float((after * np.log(after) - before * np.log(np.maximum(before, 1))).sum())
        return float(np.log(self._total)) - self._sum / self._total

    def state_dict(self) -> dict[str, Any]:
        """Return counts and sum. The sum is stored because recomputing it would change its last bits."""
        return {"counts": torch.from_numpy(self._counts.copy()), "sum": self._sum}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._counts = state["counts"].numpy().copy()
        self._total = int(self._counts.sum())
        self._sum = state["sum"]


class TimeBudget:
    """The time that measurements may use: at most `share` of the time since `start`.

    A measurement that does not fit yet may fit later, because the budget grows with the run.
    """

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.share = share
        self.expected: float | None = None
        """Seconds that the next measurement takes: what the last one took, or an estimate; None: unknown."""
        self._clock = clock
        self.start()

    def start(self) -> None:
        """Count the time from here."""
        self._began, self._spent = self._clock(), 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since `start`."""
        return self._clock() - self._began

    @property
    def share_spent(self) -> float:
        """The share of the time since `start` that was spent."""
        return self._spent / self.elapsed

    def allows(self, count: int, seconds: float) -> bool:
        """Whether `count` more measurements of `seconds` each stay within the share."""
        return self._spent + count * seconds <= self.share * self.elapsed

    @contextlib.contextmanager
    def spend(self) -> Iterator[None]:
        """Count the time of the `with` block, and expect the next one to take as long."""
        since = self._clock()
        yield
        self.expected = self._clock() - since
        self._spent += self.expected


def usual_mean(seconds: Collection[float]) -> float:
    """Return the mean of durations, ignoring those above 20 times the lower median.

    Those were held up by something else: the network was down, or the laptop was asleep.
    """
    middle = sorted(seconds)[(len(seconds) - 1) // 2]
    return statistics.fmean(one for one in seconds if one <= 20 * middle)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
