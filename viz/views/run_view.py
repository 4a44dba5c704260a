"""The content of a chart: what is shown about a run as of a step, and the verdict in one line."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from common.debiased_average import Floats
from viz.record.reader import StoreReader
from viz.record.schema import SPIKES, Row
from viz.stats.averages import WINDOW
from viz.stats.series import Series
from viz.views.token_text import Speller, speller

STAND_OUTS = 3
WORDS = 6
MOMENTS = 4
BINS = 28  # along the positions in a document
FEWEST_AT_PLACE = 5  # documents that must reach a position for a mean there
FEWEST = 20  # documents on each side of a comparison
_ODD = {
    "spike": ("spike", "spikes"),
    "skipped update": ("update skipped", "updates skipped"),
    "roll-back": ("rollback", "rollbacks"),
    "retry": ("source retry", "source retries"),
}


@dataclass(frozen=True)
class StandOut:
    """A document far above the usual loss of its source."""

    step: int
    loss: float
    excess: float
    """Nats per token above the average of its source at that step."""
    source: str
    words: str
    """The first words of its text; '' if it is not kept."""


@dataclass(frozen=True)
class Positions:
    """Mean loss by the position of a token in its document, over some documents."""

    documents: int
    places: Floats
    """(B,) index of the predicted token in its document, from 1: the middle of each bin on a logarithmic axis."""
    mean: Floats
    """(B,) nats per token."""
    error: Floats
    """(B,) standard error of the mean over documents."""


@dataclass(frozen=True)
class View:
    """A run as of `step` finished documents."""

    run: Row
    step: int
    series: Series
    count: int
    """Rows of `series` that belong to it."""
    evaluations: Sequence[Row] = ()
    events: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Kind -> steps of such events, in order, one entry per event."""
    stand_outs: Sequence[StandOut] = ()
    positions: Sequence[Positions] = ()
    """For the first and for the newest documents, which do not overlap."""
    moments: Sequence[Row] = ()
    """Rows of `text_samples` for one prompt, at most `MOMENTS`, in order."""
    sample: Row | None = None
    """The newest generation that continues a document."""

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return a column of the store: (count,)."""
        return self.series[name][: self.count]

    @property
    def spikes(self) -> list[int]:
        """Steps that the spike detector flagged."""
        return sorted({step for kind in SPIKES for step in self.events.get(kind, ())})

    @property
    def repeats_from(self) -> int | None:
        """The first step of the second epoch; None during the first."""
        return self.events["epoch"][0] if "epoch" in self.events else None

    @property
    def warmup_steps(self) -> int:
        return int(self.run.get("config", {}).get("warmup_steps") or 0)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the last step, at the speed of the last `WINDOW` documents; None for a finished run.

        Interruptions (more than 20 times the lower median) are excluded.
        """
        left = int(self.run.get("config", {}).get("num_steps") or 0) - self.step
        ended = self.run.get("ended") is not None and self.count == self.series.size
        recent = self.column("seconds")[-WINDOW:]
        recent = recent[np.isfinite(recent)]
        if left <= 0 or ended or not len(recent):
            return None
        middle = np.quantile(recent, 0.5, method="lower")
        return left * float(recent[recent <= 20 * middle].mean())


class Viewer:
    """Makes views of one store repeatedly; caches words of stand-outs and positions of the first documents."""

    def __init__(self, store: StoreReader) -> None:
        self._store = store
        self.series = Series()
        self._speller: Speller | None = None
        self._has_speller = False
        self._words: dict[int, str] = {}
        self._early: Positions | None = None
        self._rewinds: int | None = None

    def look(self, step: int | None = None) -> View:
        """Return the run as of `step` finished documents, or as of its newest."""
        if (rewinds := self._store.count_rewinds()) != self._rewinds:  # steps may have been repeated
            if self._rewinds is not None:
                self.series, self._words, self._early = Series(), {}, None
            self._rewinds = rewinds
        self.series.read(self._store)
        if step is None:
            step = int(self.series["steps"][-1]) + 1 if self.series.size else 0
        run, count = self._store.run(), self.series.rows_below(step)
        view = View(run, step, self.series, count)
        return View(
            run,
            step,
            self.series,
            count,
            evaluations=self._store.evaluations(step),
            events=self._store.steps_of_events(step),
            stand_outs=[self._stand_out(row) for row in furthest_above(view)],
            positions=self._positions(count),
            moments=self._store.text_samples_of(spread(self._store.asked_again(step), MOMENTS)),
            sample=self._store.latest_text_sample(step),
        )

    def _stand_out(self, row: int) -> StandOut:
        series = self.series
        step = int(series["steps"][row])
        if step not in self._words:
            self._words[step] = self._first_words(step)
        loss, excess = float(series["loss"][row]), float(series.excess.values()[row])
        return StandOut(step, loss, excess, str(series["source"][row]), self._words[step])

    def _first_words(self, step: int) -> str:
        if not self._has_speller:
            self._speller, self._has_speller = speller(self._store.run().get("tokenizer")), True
        ids = self._store.token_ids(step)
        if ids is None or self._speller is None:
            return ""
        return " ".join(self._speller.text(ids).split()[:WORDS])

    def _positions(self, count: int) -> list[Positions]:
        documents = min(WINDOW, count // 2)
        if documents < FEWEST_AT_PLACE:
            return []
        early = self._early
        if early is None or early.documents != documents:
            early = self._measure(0, documents)
        if documents == WINDOW:
            self._early = early  # will not change any more
        return [found for found in (early, self._measure(count - documents, count)) if found is not None]

    def _measure(self, first: int, last: int) -> Positions | None:
        steps = self.series["steps"]
        first_step, last_step = int(steps[first]), int(steps[last - 1])
        losses = self._store.token_losses(first_step, last_step + 1)
        # If few are left, they were kept because they are unusual.
        enough = len(losses) >= max(FEWEST_AT_PLACE, (last - first) / 2)
        found = by_position(losses) if enough else None
        return found if found is not None and len(found.places) else None


def furthest_above(view: View) -> list[int]:
    """Return the rows of the `STAND_OUTS` documents after the warm-up with the greatest excess, greatest first."""
    begin = view.series.rows_below(view.warmup_steps)
    excess = view.series.excess.values(view.count)[begin:]
    above = np.flatnonzero((excess >= 0.005) & np.isfinite(excess))  # less would be shown as +0.00
    if len(above) > STAND_OUTS:
        above = above[np.argpartition(excess[above], -STAND_OUTS)[-STAND_OUTS:]]
    return [begin + int(row) for row in above[np.argsort(-excess[above], kind="stable")]]


def by_position(losses: Sequence[npt.NDArray[Any]]) -> Positions:
    """Return the mean loss of tokens in `BINS` position bins of equal width on a logarithmic axis.

    Tokens of one document are not independent, but documents are: each document contributes the mean over its tokens
    in a bin, and the error is that of the mean over documents.
    """
    longest = max(len(one) for one in losses)
    edges = np.unique(np.geomspace(1, longest + 1, BINS + 1).astype(int))
    table = np.full((len(losses), longest), np.nan)
    for row, one in zip(table, losses, strict=True):
        row[: len(one)] = one
    known = np.isfinite(table)
    counts = np.add.reduceat(known, edges[:-1] - 1, axis=1)
    sums = np.add.reduceat(np.where(known, table, 0), edges[:-1] - 1, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums / counts
    reach = (counts > 0).sum(axis=0)
    kept = reach >= FEWEST_AT_PLACE
    means, reach = means[:, kept], reach[kept]
    places = np.sqrt(edges[:-1] * (edges[1:] - 1.0))[kept]
    error = np.nanstd(means, axis=0, ddof=1) / np.sqrt(reach)
    return Positions(len(losses), places, np.nanmean(means, axis=0), error)


def spread(places: Sequence[tuple[int, int]], most: int) -> list[int]:
    """Select at most `most` ids of (step, id), including the first and last, at about equal ratios of steps.

    A model learns most at the beginning, so equal ratios show more of it than equal distances.
    """
    if most == 1:
        return [number for _, number in places[-1:]]
    if len(places) <= most:
        return [number for _, number in places]
    logs = np.log([max(step, 1) for step, _ in places])
    chosen, free = [0, len(places) - 1], np.ones(len(places), dtype=bool)
    free[chosen] = False
    for k in range(1, most - 1):
        wanted = logs[1] + (logs[-1] - logs[1]) * k / (most - 1)
        chosen.append(int(np.where(free, np.abs(logs - wanted), np.inf).argmin()))
        free[chosen] = False
    return [places[place][1] for place in sorted(chosen)]


def verdict(view: View) -> str:
    """Return the verdict in one line. The loss is the running average of the chart, ± two standard errors."""
    losses = view.column("loss")
    losses = losses[np.isfinite(losses)]
    if len(losses) < 2:
        return "Too few documents to judge yet"
    average, error = (
        float(one.values(view.count)[-1]) for one in (view.series.averages.loss, view.series.averages.loss_error)
    )
    # A repeated step repeats its spike, which counts once; other events count each time.
    counts = {kind: len(set(steps) if kind in SPIKES else steps) for kind, steps in view.events.items()}
    odd = [f"{counts[kind]:,} {words[counts[kind] > 1]}" for kind, words in _ODD.items() if kind in counts]
    waited = view.series.averages.waited_share.values(view.count)[-1]
    guessing = math.log(view.run["vocab_size"]) if view.run.get("vocab_size") else math.inf
    of = f"~{WINDOW}" if len(losses) > WINDOW else f"all {len(losses)}"
    parts = (
        f"Loss {average:.2f} ± {2 * error:.2f} (average of {of})",
        f"worse than a uniform guess ({guessing:.2f})" if average > guessing + 0.5 else "",
        _change(losses),
        ", ".join(odd),
        f"{waited:.0%} of the time spent waiting for documents" if waited > 0.1 else "",
    )
    return " · ".join(filter(None, parts))


def _change(losses: Floats) -> str:
    """Compare the last quarter of the documents with the quarter before; in a short run, the halves."""
    part, name = (len(losses) // 4, "quarter") if len(losses) >= 4 * WINDOW else (len(losses) // 2, "half")
    if part < FEWEST:
        return ""
    now, before = losses[-part:], losses[-2 * part : -part]
    change, noise = now.mean() - before.mean(), 2 * math.hypot(_standard_error(now), _standard_error(before))
    digits = 2 if noise >= 0.095 else 3 if noise >= 0.0095 else 4
    sizes = f"{abs(change):.{digits}f} ± {noise:.{digits}f}"
    found = f"{sizes} {'lower' if change < 0 else 'higher'} than the {name} before"
    return f"the last {name} of the run {found}" if abs(change) > noise else f"no change beyond noise: {found}"


def _standard_error(values: Floats) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))
