"""Which documents keep their tokens: the newest ones, and older ones that a reader is likely to open."""

from typing import Any

import numpy as np
import numpy.typing as npt

from common.debiased_average import Floats
from viz.record.schema import DOCUMENT, KEY, SPIKES, Array, Statement
from viz.record.writer import Fetch
from viz.stats.averages import WINDOW
from viz.stats.series import UsualLoss, rows_by_source

BLOCK = 1000
"""Steps whose documents are examined together."""
EXTREMES = 10
"""Documents of a block that are kept because they are furthest above the usual loss of their source; as many below."""
_COLUMNS = ", ".join(KEY | DOCUMENT)
_EMPTIED = ", ".join("NULL" if kind is Array else name for name, kind in (KEY | DOCUMENT).items())


class Retention:
    """Clears `token_ids`, `token_losses` and `token_ranks` of documents older than `keep` steps, block by block.

    Their rows stay. Documents keep their tokens if their step had a spike or no update, if they were re-measured, if
    they are the furthest from the usual loss of their source in their block of `block` steps (`extremes` on each
    side), or if they are among the `first` documents of the run, which a chart compares with the newest.

    What is kept depends only on the rows up to the end of the block. After a rewind or a resume, all blocks are
    therefore processed again, and nothing is written if there is nothing to clear.
    """

    def __init__(self, keep: int, *, block: int = BLOCK, extremes: int = EXTREMES, first: int = WINDOW) -> None:
        self._keep = keep
        self._block = block
        self._extremes = extremes
        self._first = first
        self._begin_again()

    def _begin_again(self) -> None:
        self._next = 0
        """The first step that was not examined."""
        self._seen = 0
        """Documents before it."""
        self._usual: dict[str, UsualLoss] = {}

    def is_due(self, done: int) -> bool:
        """Whether a block has become old enough with the last of `done` finished documents."""
        return done > self._keep and (done - self._keep) % self._block == 0

    def rewind(self, step: int) -> None:
        """Call when the rows from `step` on were deleted; others will replace them."""
        if step < self._next:
            self._begin_again()

    def next_change(self, fetch: Fetch) -> tuple[Statement, ...]:
        """Return the statements that clear the next block with anything to clear; empty if no such block is due."""
        ((done,),) = fetch("SELECT coalesce(max(step), -1) + 1 FROM steps")
        while self._next + self._block <= done - self._keep:
            if change := self._change_of_next(fetch):
                return change
        return ()

    def _change_of_next(self, fetch: Fetch) -> tuple[Statement, ...]:
        block = (self._next, self._next + self._block)
        rows = fetch(
            "SELECT s.step, s.loss, coalesce(d.source, ''), d.token_ids IS NOT NULL"
            " FROM steps s LEFT JOIN documents d USING (step, rank)"
            " WHERE s.step >= ? AND s.step < ? ORDER BY s.step, s.rank",
            block,
        )
        places = ", ".join("?" * len(SPIKES))
        chosen = fetch(
            f"SELECT step FROM events WHERE kind IN ({places}) AND step >= ? AND step < ?"
            " UNION SELECT document FROM probes WHERE document >= ? AND document < ?",
            (*SPIKES, *block, *block),
        )
        # The state changes only after all reads: if one fails, the block is requested again.
        self._next = block[1]
        if not rows:
            return ()
        steps, losses, names, have_tokens = zip(*rows, strict=True)
        excess = self._excess(np.array(losses, dtype=np.float64), np.array(names, dtype=object))
        is_first = np.arange(self._seen, self._seen + len(rows)) < self._first
        self._seen += len(rows)
        numbers = np.array(steps, dtype=np.int64)
        outstanding = numbers[is_first | furthest(excess, self._extremes)]
        kept = {step for (step,) in chosen} | set(outstanding.tolist())
        if not any(has and step not in kept for step, has in zip(steps, have_tokens, strict=True)):
            return ()
        # A replaced row moves to the end of the table and frees its page. A row that is updated in place stays on its
        # page, and the file would grow as if nothing had been cleared.
        sql = (
            f"REPLACE INTO documents ({_COLUMNS}) SELECT {_EMPTIED} FROM documents WHERE step >= ? AND step < ?"
            f" AND token_ids IS NOT NULL AND step NOT IN ({', '.join('?' * len(kept))}) ORDER BY step, rank"
        )
        return ((sql, (*block, *sorted(kept))),)

    def _excess(self, losses: Floats, names: npt.NDArray[Any]) -> Floats:
        """Return how far each document is above the usual loss of its source before it; NaN if unknown."""
        usual = np.full(len(losses), np.nan)
        for name, rows in rows_by_source(names):
            _, usual[rows] = self._usual.setdefault(name, UsualLoss()).extend(losses[rows])
        with np.errstate(invalid="ignore"):
            excess: Floats = losses - usual
        return excess


def furthest(excess: Floats, count: int) -> npt.NDArray[np.bool_]:
    """Select the `count` greatest and the `count` least finite values: (N,) -> (N,) bool."""
    found = np.zeros(len(excess), dtype=bool)
    known = np.flatnonzero(np.isfinite(excess))
    order = known[np.argsort(excess[known], kind="stable")]
    found[order[:count]] = found[order[max(len(order) - count, 0) :]] = True
    return found
