"""How often each token occurred so far, and what that alone would tell of the next one."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch


class TokenCounts:
    """Counts of the tokens trained on, and the entropy of their frequencies.

    H = -sum_i p_i ln p_i with p_i = c_i / N (Shannon 1948, section 6), kept as ln N - (sum_i c_i ln c_i) / N, so that a
    document costs what it is long and not what the vocabulary is large.
    """

    def __init__(self) -> None:
        self._counts = np.zeros(0, dtype=np.int64)
        self._total = 0
        self._sum = 0.0  # of c ln c

    def add(self, ids: Sequence[int]) -> float:
        """Count the (T,) ids of a document. Returns the entropy of all tokens so far, nats per token."""
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
        """The sum as it is, too: counted anew it would differ in its last bits."""
        return {"counts": torch.from_numpy(self._counts.copy()), "sum": self._sum}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._counts = state["counts"].numpy().copy()
        self._total = int(self._counts.sum())
        self._sum = state["sum"]
