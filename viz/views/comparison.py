"""Two runs compared document by document.

Most of a document's loss comes from the document. If two runs read the same documents, that part is in both losses and
cancels in their difference, so a few hundred pairs show what two averages hide for tens of thousands of documents.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.debiased_average import Floats
from viz.record.reader import Columns, StoreReader
from viz.record.schema import Row
from viz.stats.averages import WINDOW, Indices
from viz.stats.paired_difference import Difference, RunningAverage, by_source, estimate, match, running


@dataclass(frozen=True)
class Comparison:
    """How two runs differ on their shared documents. Differences are A - B: above zero, B is better."""

    names: tuple[str, str]
    unit: str
    """`nats per token`, or `bits per byte` if the tokenizers differ."""
    overall: Difference
    later: Difference
    """For the second half of the documents, after the warm-up."""
    sources: tuple[Difference, ...]
    """By A's name of each source, the most frequent first."""
    unpaired_half_width: float
    """Half width of the 95 % interval that the two averages alone would give."""
    settings: tuple[tuple[str, str, str], ...]
    """(name, A's, B's) of the settings that differ and affect learning."""
    about: tuple[str, str]
    """Id and model of A and of B."""
    same: bool
    """Whether A and B have the same run id."""
    texts: int
    """Number of different texts among the compared documents."""
    totals: tuple[int, int]
    """Number of steps of A and of B."""
    since: int
    """First step of A whose document is compared."""
    moved: float
    """Share of the compared documents that the runs read at different steps, 0...1."""
    other_lengths: int
    """Number of compared documents that the runs read to different lengths."""
    left_out: tuple[tuple[str, int], ...]
    """(reason, number) of the shared documents that could not be compared."""
    steps: npt.NDArray[np.int64]
    """A's steps of the compared documents, in order: (N,)."""
    differences: Floats
    """A - B of each of these documents: (N,)."""
    curves: tuple[RunningAverage, RunningAverage]
    """Average loss of A over A's steps, and of B over B's."""
    difference_curve: RunningAverage
    """Average difference over A's steps."""

    def sentence(self) -> str:
        """Return the result in one line; its numbers show two digits of the half width."""
        (a, b), shared = self.names, _documents(self.overall.documents, "shared ")
        value, half, over = self.overall.value, self.overall.half_width, f"{self.unit} over {shared}"
        if not self.differences.any():
            return f"{a} and {b} have the same loss on each of {shared}"
        if half is None:
            return f"Too few documents for an interval: {self._found(self.overall)} {over}"
        if abs(value) > half:
            return f"{self._found(self.overall)} {over}"
        hidden = f"{abs(value) + half:.{_digits(half)}f}"
        return f"No difference found: {self._found(self.overall)} {over}; a difference of up to {hidden} is possible"

    def _found(self, difference: Difference) -> str:
        (a, b), value, half = self.names, difference.value, difference.half_width
        digits = _digits(half)
        error = "" if half is None else f" ± {half:.{digits}f}"
        if half is not None and abs(value) > half:
            return f"{b if value > 0 else a} is better by {abs(value):.{digits}f}{error}"
        sign = "−" if round(value, digits) < 0 else "+"
        return f"{a} − {b} = {sign}{abs(value):.{digits}f}{error}"

    def notes(self) -> list[str]:
        """Return further lines, the most important first; only those that apply."""
        (a, b), half, found = self.names, self.overall.half_width, []
        if self.same:
            found.append(f"{a} and {b} are the same run")
        elif [name for name, _, _ in self.settings] == ["seed"]:
            found.append("Only the seed differs: the difference is due to chance")
        if self.settings:
            named = "; ".join(f"{name} {one} ({a}), {other} ({b})" for name, one, other in self.settings)
            found.append(f"Settings that differ: {named}")
        if self.since:
            found.append(f"Only documents from step {self.since:,} of {a} on")
        if half and (narrower := self.unpaired_half_width / half) >= 1.1:
            times, wide = f"{narrower:.{0 if narrower >= 9.95 else 1}f}", self.unpaired_half_width
            alone = f"± {wide:.{_digits(wide)}f}"
            found.append(f"Paired by document: {times} times narrower than from the two averages alone ({alone})")
        if half and self.later.half_width is not None:
            found.append(f"Second half only: {self._found(self.later)}")
        if self.unit == "bits per byte":
            found.append("Different or unknown tokenizers: compared in bits per byte")
        if self.other_lengths:
            in_bits = self.unit == "bits per byte"
            how = "bits divided by the bytes each run read" if in_bits else "compared on the tokens that both predicted"
            found.append(f"{_documents(self.other_lengths)} of which the runs read different amounts: {how}")
        if self.texts < self.overall.documents:
            found.append(f"Only {self.texts:,} different texts: repeats count as new documents, so the ± is too narrow")
        if self.moved:
            found.append(f"{_documents(round(self.moved * self.overall.documents))} read at different steps")
        found += [f"{_documents(count)} excluded: {reason}" for reason, count in self.left_out]
        if any(total > self.overall.documents + sum(count for _, count in self.left_out) for total in self.totals):
            found.append(f"{a} has {_documents(self.totals[0])}, {b} has {self.totals[1]:,}")
        return found


def _documents(count: int, kind: str = "") -> str:
    return f"{count:,} {kind}document{'' if count == 1 else 's'}"


def _digits(error: float | None) -> int:
    """Return the number of decimals that show two significant digits of an error."""
    return min(max(1 - math.floor(math.log10(error)), 0), 6) if error else 3


def compare(
    a: StoreReader,
    b: StoreReader,
    names: tuple[str, str] = ("A", "B"),
    since: int = 0,
    at_hand: Sequence[Columns | None] = (None, None),
) -> Comparison:
    """Compare two runs (rank 0) on their shared documents (from step `since` of A on), matched by the text's SHA-256.

    With the same tokenizer, in nats per token; if the runs read different lengths of a document, over the tokens that
    both predicted. With different or unknown tokenizers, in bits per byte, each run over the bytes that it read.
    `at_hand`: the columns of A and of B, if already read.
    Raises ValueError if a run has no steps or there is no document to compare.
    """
    stores, runs = (a, b), (a.run(), b.run())
    tables = [_read(store, name, known) for store, name, known in zip(stores, names, at_hand, strict=True)]
    places = match(tables[0][1], tables[1][1])
    if not len(places[0]):
        held = [
            f"{name} has {_documents(total)} of {run.get('source') or 'unknown data'}"
            for name, (_, _, total), run in zip(names, tables, runs, strict=True)
        ]
        raise ValueError(f"{names[0]} and {names[1]} share no document: {', '.join(held)}")
    late = tables[0][0]["steps"][places[0]] >= since
    if not late.any():
        raise ValueError(f"{names[0]} and {names[1]} share no document from step {since:,} of {names[0]} on")
    places = (places[0][late], places[1][late])
    columns = [
        {key: values[rows] for key, values in table.items()} for (table, _, _), rows in zip(tables, places, strict=True)
    ]
    hash_a, hash_b = (run.get("tokenizer_hash") for run in runs)
    in_nats = bool(hash_a) and hash_a == hash_b
    per = "tokens" if in_nats else "bytes"
    with np.errstate(invalid="ignore"):  # non-finite losses
        sums = [table["loss"] * table["tokens"] / (1 if in_nats else math.log(2)) for table in columns]
    weights = [table[per].copy() for table in columns]
    unlike = weights[0] != weights[1]
    broken = {
        "their loss or number of tokens is not finite": ~(np.isfinite(sums[0]) & np.isfinite(sums[1])),
        f"their number of {per} is unknown or 0": ~(np.minimum(*weights) > 0),
    }
    kept = ~np.any([*broken.values()], axis=0)
    if in_nats:
        unkept = np.zeros_like(kept)
        unkept[kept & unlike] = _cut_to_shorter(stores, columns, sums, weights, np.flatnonzero(kept & unlike))
        broken["the runs read different amounts of them, and their token losses are no longer stored"] = unkept
    left_out, kept = [], np.ones_like(kept)
    for reason, found in broken.items():
        if count := int((kept & found).sum()):
            left_out.append((reason, count))
        kept &= ~found
    if not kept.any():
        why = "; ".join(f"{_documents(count)}: {reason}" for reason, count in left_out)
        raise ValueError(f"{names[0]} and {names[1]} share no document that can be compared ({why})")
    steps_a, steps_b = (table["steps"][kept] for table in columns)
    pairs = [(total[kept], weight[kept]) for total, weight in zip(sums, weights, strict=True)]
    half, window = len(steps_a) // 2, max(WINDOW, len(steps_a) // 50)
    order = np.argsort(steps_b)
    curve_a, error_a = running(steps_a, pairs[:1], window)
    curve_b, error_b = running(steps_b[order], [(pairs[1][0][order], pairs[1][1][order])], window)
    return Comparison(
        names=names,
        unit="nats per token" if in_nats else "bits per byte",
        overall=estimate(pairs, "all"),
        later=estimate([(total[half:], weight[half:]) for total, weight in pairs], "second half"),
        sources=by_source(pairs, columns[0]["source"][kept]),
        unpaired_half_width=1.96 * math.hypot(error_a, error_b),
        settings=_other_settings(runs),
        about=(_about(runs[0]), _about(runs[1])),
        same=bool(runs[0].get("run_id")) and runs[0].get("run_id") == runs[1].get("run_id"),
        texts=len(np.unique(tables[0][1][places[0]][kept])),
        totals=(tables[0][2], tables[1][2]),
        since=since,
        moved=float((steps_a != steps_b).mean()),
        other_lengths=int((unlike & kept).sum()),
        left_out=tuple(left_out),
        steps=steps_a,
        differences=pairs[0][0] / pairs[0][1] - pairs[1][0] / pairs[1][1],
        curves=(curve_a, curve_b),
        difference_curve=running(steps_a, pairs, window)[0],
    )


def _about(run: Row) -> str:
    return f"{run.get('run_id') or 'no id'}, {run.get('model') or 'unknown model'}"


def _other_settings(runs: Sequence[Row]) -> tuple[tuple[str, str, str], ...]:
    """Return the settings that differ, except those that only decide what is shown or kept.

    The number of steps counts only if the learning rate depends on it.
    """
    kept = {"keep_charts", "keep_checkpoints", "keep_documents", "keep_every", "checkpoint"}
    beside = kept | {"display_samples", "probes", "prompt"}
    first, second = (run["config"] for run in runs)
    if all(one.get("schedule") == "constant" and not one.get("cooldown_steps") for one in (first, second)):
        beside.add("num_steps")
    names = [name for name in first if name in second and name not in beside]
    return tuple(
        (name, str(first[name]), str(second[name]))
        for name in names
        if first[name] != second[name] and not name.endswith(("_dir", "_interval"))
    )


def _cut_to_shorter(
    stores: Sequence[StoreReader], columns: Sequence[Columns], sums: list[Floats], weights: list[Floats], rows: Indices
) -> list[bool]:
    """Replace the longer run's sum and weight of each of `rows` by those of the tokens that both predicted.

    Return which of `rows` have no token losses.
    """
    missing = []
    for row in rows:
        longer = int(weights[1][row] > weights[0][row])
        count, step = int(weights[1 - longer][row]), int(columns[longer]["steps"][row])
        losses = np.concatenate([*stores[longer].token_losses(step, step + 1), np.empty(0)])[:count]
        sums[longer][row], weights[longer][row] = losses.sum(), count
        missing.append(len(losses) < count or not math.isfinite(sums[longer][row]))
    return missing


def _read(store: StoreReader, name: str, columns: Columns | None) -> tuple[Columns, npt.NDArray[np.bytes_], int]:
    """Return `StoreReader.columns` of the steps whose text hash is known, the hashes, and the number of all steps."""
    columns = store.columns() if columns is None else columns
    total = len(columns["steps"])
    if not total:
        raise ValueError(f"{name} has no steps yet: there is nothing to compare")
    steps, hashes = store.text_hashes()
    _, rows, known = np.intersect1d(columns["steps"], steps, assume_unique=True, return_indices=True)
    return {key: values[rows] for key, values in columns.items()}, hashes[known], total
