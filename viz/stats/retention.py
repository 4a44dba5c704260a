"""Which documents keep their tokens: the newest, and of those further back the ones that a reader would open."""

from typing import Any

import numpy as np
import numpy.typing as npt

from common.debiased_average import Floats
from viz.record.schema import DOCUMENT, KEY, SPIKES, Array, Statement
from viz.record.writer import Fetch
from viz.stats.averages import WINDOW
from viz.stats.series import UsualLoss, rows_by_source

BLOCK = 1000
"""Steps whose documents are looked at together."""
EXTREMES = 10
"""Documents of a block that are kept because they are furthest above the usual loss of their source; as many below."""
_COLUMNS = ", ".join(KEY | DOCUMENT)
_EMPTIED = ", ".join("NULL" if kind is Array else name for name, kind in (KEY | DOCUMENT).items())


class Retention:
    """Empties `token_ids`, `token_losses` and `token_ranks` of documents more than `keep` steps back, block by block.

    Their rows stay. So do the tokens of documents whose step had a spike or no update, of those furthest from what was
    usual for their source, of those that were measured again, and of the first ones, which a chart shows beside the
    newest.

    What is kept of a block follows from the rows up to its end alone. So after a rewind, or in a resumed run, all
    blocks are gone through again, and where there is nothing left to empty nothing is written.
    """

    def __init__(self, keep: int, *, block: int = BLOCK, extremes: int = EXTREMES, first: int = WINDOW) -> None:
        self._keep = keep
        self._block = block
        self._extremes = extremes
        self._first = first
        self._begin_again()

    def _begin_again(self) -> None:
        self._next = 0
        """The first step that was not looked at."""
        self._seen = 0
        """Documents before it."""
        self._usual: dict[str, UsualLoss] = {}

    def is_due(self, done: int) -> bool:
        """Whether a block has left the window with the last of `done` finished documents."""
        return done > self._keep and (done - self._keep) % self._block == 0

    def rewind(self, step: int) -> None:
        """The rows from `step` on are gone. Others take their place."""
        if step < self._next:
            self._begin_again()

    def next_change(self, fetch: Fetch) -> tuple[Statement, ...]:
        """What empties the next block in which there is something to empty; nothing where no such block is due."""
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
        # Nothing is remembered before all of it is read: where reading fails, the block is asked for again.
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
        # A row that is written anew, at the end of the table, frees the pages of the old one. One that is made smaller
        # where it stands leaves its page as large as it was, and the file would grow all the same.
        sql = (
            f"REPLACE INTO documents ({_COLUMNS}) SELECT {_EMPTIED} FROM documents WHERE step >= ? AND step < ?"
            f" AND token_ids IS NOT NULL AND step NOT IN ({', '.join('?' * len(kept))}) ORDER BY step, rank"
        )
        return ((sql, (*block, *sorted(kept))),)

    def _excess(self, losses: Floats, names: npt.NDArray[Any]) -> Floats:
        """How far each document lay above what was usual for its source before it; NaN where nothing was yet."""
        usual = np.full(len(losses), np.nan)
        for name, rows in rows_by_source(names):
            _, usual[rows] = self._usual.setdefault(name, UsualLoss()).extend(losses[rows])
        with np.errstate(invalid="ignore"):
            excess: Floats = losses - usual
        return excess


def furthest(excess: Floats, count: int) -> npt.NDArray[np.bool_]:
    """(N,) -> (N,) bool: the `count` greatest and the `count` least of the finite ones."""
    found = np.zeros(len(excess), dtype=bool)
    known = np.flatnonzero(np.isfinite(excess))
    order = known[np.argsort(excess[known], kind="stable")]
    found[order[:count]] = found[order[max(len(order) - count, 0) :]] = True
    return found
