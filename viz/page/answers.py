"""The answers to questions about a run, as plain JSON values: what the page, scripts and the report show.

docs/page.md describes each of them.
"""

from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np

from viz.page.live_run import LiveRun
from viz.page.query import NotThere
from viz.record.runs import find_runs
from viz.stats.averages import WINDOW, debiased_average
from viz.stats.downsample import Curve, finite, number, numbers, outline
from viz.stats.series import Series
from viz.views.document import OpenedDocument, open_document
from viz.views.run_view import View, spread, verdict

Answer = dict[str, Any]
POINTS, MOST_POINTS = 800, 4000
LARGEST_WINDOW = 100_000
MOST_STEPS_OF_KIND = 2000
"""Marks of one kind of events on a curve."""
WORDS = 90
"""Characters of a document that a list shows."""
NOT_SENT = ("tokenizer", "id")
"""Columns of the table `run` that are not sent: a blob, and the number of the row."""


class Answers:
    """Answers about a run as it is at each call. Every method raises NoRun if the run can't be read."""

    def __init__(self, live: LiveRun) -> None:
        self.live = live
        self._words: dict[int, str] = {}
        self._words_edition = live.edition
        self._resume: tuple[int, str | None] = (-1, None)
        """The edition for which the command was computed, and the command that resumes the run."""

    def run(self) -> Answer:
        """Return the run's description, its progress and its newest averages."""
        with self.live.reading():
            run, series = self.live.run, self.live.series
            steps = int(series["steps"][-1]) + 1 if series.size else 0
            view = View(run, steps, series, series.size, events=self.live.store.steps_of_events(steps))
            averages = series.averages
            latest = {
                name: number(float(curve.values()[-1])) if series.size else None
                for name, curve in {
                    "loss": averages.loss, "accuracy": averages.accuracy, "gradient_norm": averages.gradient_norm,
                    "throughput": averages.tokens_per_second, "waited_share": averages.waited_share,
                }.items()
            }  # fmt: skip
            return {
                "state": self.live.state if series.size else f"{self.live.state}, no steps",
                "edition": self.live.edition,
                "folder": str(self.live.record),
                "first_step": int(series["steps"][0]) if series.size else None,
                "steps": steps,
                "steps_asked": run["config"].get("num_steps"),
                "seconds_left": number(view.seconds_left) if self.live.state == "running" else None,
                "verdict": verdict(view),
                "latest": latest,
                "resume_command": self._resume_command() if self.live.state == "stopped" else None,
                "repeats_from": view.repeats_from,
                "run": finite({name: value for name, value in run.items() if name not in NOT_SENT}),
            }

    def _resume_command(self) -> str | None:
        """The command that resumes the run, to be typed where the server was started; None if it can't be resumed."""
        if self._resume[0] != self.live.edition:
            runs = find_runs(self.live.record)
            mine = [run.resume_command for run in runs if run.run_id == self.live.run.get("run_id")]
            self._resume = (self.live.edition, mine[0] if mine else None)
        return self._resume[1]

    def series(
        self, first: int = 0, below: int | None = None, points: int = POINTS, window: int = WINDOW, log: bool = False
    ) -> Answer:
        """Return the curves for first <= step < below, single documents and averages, reduced to `points` pixels.

        Averages cover all documents up to each step, whatever range is shown.
        """
        with self.live.reading():
            series, averages = self.live.series, self.live.averages(window)
            low, high = _rows(series, first, below)
            lanes: Answer = {}
            of_lane = {
                "loss": averages.loss, "accuracy": averages.accuracy, "throughput": averages.tokens_per_second,
                "learning_rate": None, "gradient_norm": averages.gradient_norm,
            }  # fmt: skip
            for name, average in of_lane.items() if series.size else ():
                steps = series["steps"]
                rows = outline(series.column(name), steps, low, high, points, log=log)
                lanes[name] = {"steps": steps[rows].tolist(), "values": numbers(series[name][rows])}
                if average is not None:
                    rows = outline(average, steps, low, high, points // 2, log=log)
                    lanes[name]["average"] = {"steps": steps[rows].tolist(), "values": numbers(average.values()[rows])}
                if name == "loss":
                    error = averages.loss_error.values()[rows]
                    lanes[name]["average"]["error"] = numbers(error)
                    broken = low + np.flatnonzero(~np.isfinite(series[name][low:high]))
                    lanes[name]["not_finite"] = _thinned(steps[broken].tolist())
            return {
                "edition": self.live.edition,
                "from": first,
                "to": below,
                "steps": int(series["steps"][-1]) + 1 if series.size else 0,
                "documents": max(high - low, 0),
                "window": window,
                "lanes": lanes,
                "evaluations": [
                    {"step": row["step"], "split": row["split"]}
                    | {name: number(row[name]) for name in ("loss", "accuracy", "bits_per_byte")}
                    for row in self.live.store.evaluations(2**62)
                    if first <= row["step"] and (below is None or row["step"] < below)
                ],
            }

    def sources(self, points: int = POINTS, window: int = WINDOW, log: bool = False) -> Answer:
        """Return each source, the most frequent first: its share, and its average loss over time.

        The average is over about `window` documents of that source.
        """
        with self.live.reading():
            series = self.live.series
            found = []
            for name, source in sorted(series.sources.items(), key=lambda item: -item[1].rows.size):
                rows, curve = source.rows.values(), source.average
                if window != WINDOW:
                    curve = Curve()
                    curve.extend(debiased_average(series["loss"][rows], window))
                averages = curve.values()
                steps, tokens = series["steps"][rows], series["tokens"][rows]
                shown = outline(curve, steps, 0, len(rows), points // 2, log=log)
                found.append(
                    {
                        "source": name,
                        "documents": len(rows),
                        "share": number(len(rows) / series.size),
                        "tokens": int(np.nansum(tokens)),
                        "share_of_tokens": number(float(np.nansum(tokens) / max(np.nansum(series["tokens"]), 1))),
                        "average": number(float(averages[-1])),
                        "first_step": int(steps[0]),
                        "curve": {"steps": steps[shown].tolist(), "values": numbers(averages[shown])},
                    }
                )
            return {"edition": self.live.edition, "window": window, "sources": found}

    def events(self, most: int = 300, kind: str | None = None) -> Answer:
        """Return the `most` newest events, newest first, and for each kind their count and steps."""
        with self.live.reading():
            found = self.live.store.steps_of_events(2**62)
            newest, edition = self.live.store.newest_events(most, kind), self.live.edition
        return {
            "edition": edition,
            "kinds": [
                {"kind": name, "count": len(steps), "steps": _thinned(sorted(set(steps)))}
                for name, steps in sorted(found.items())
            ],
            "events": [
                {"step": row["step"], "time": finite(row["time"]), "kind": row["kind"], "detail": row["detail"]}
                for row in newest
            ],
        }

    def spikes(
        self, most: int = 50, source: str | None = None, first: int | None = None, *, best: bool = False
    ) -> Answer:
        """Return the documents furthest above (`best`: below) the average of their source just before them.

        `first`: ignore earlier steps. By default that is the warm-up, once the run is twice as long.
        Raises NotThere for an unknown source.
        """
        with self.live.reading():
            series = self.live.series
            if first is None:
                warmup = int(self.live.run["config"].get("warmup_steps") or 0)
                first = warmup if series.size and 2 * warmup <= int(series["steps"][-1]) + 1 else 0
            excess = series.excess.values()
            wanted = (excess < 0) if best else (excess > 0)  # NaN, before a source has an average, is neither
            wanted[: series.rows_below(first)] = False
            if source is not None and source not in series.sources:
                known = ", ".join(sorted(series.sources)[:20]) or "none"
                raise NotThere(f"this run has no source {source[:100]!r}; its sources: {known}")
            if source is not None:
                mine = np.zeros_like(wanted)
                mine[series.sources[source].rows.values()] = True
                wanted &= mine
            rows = np.flatnonzero(wanted)
            height = excess[rows] if best else -excess[rows]
            if len(rows) > most:
                chosen = np.argpartition(height, most)[:most]
                rows, height = rows[chosen], height[chosen]
            rows = rows[np.argsort(height, kind="stable")]
            flagged = self.live.store.judged()
            return {
                "edition": self.live.edition,
                "from": first,
                "documents": [self._entry(int(row), flagged) for row in rows],
            }

    def about(self, steps: Sequence[int]) -> list[Answer]:
        """Return the list entry of each step; only `step` if the record does not have it (any more)."""
        with self.live.reading():
            series, flagged, found = self.live.series, self.live.store.judged(), []
            for step in steps:
                row = series.rows_below(step)
                is_known = row < series.size and int(series["steps"][row]) == step
                found.append(self._entry(row, flagged) if is_known else {"step": step})
            return found

    def _entry(self, row: int, flagged: Container[int]) -> Answer:
        series, step = self.live.series, int(self.live.series["steps"][row])
        excess, loss = float(series.excess.values()[row]), float(series["loss"][row])
        usual = float(series.usual.values()[row])
        return {
            "step": step,
            "source": str(series["source"][row]),
            "loss": number(loss),
            "usual": number(usual),
            "excess": number(excess),
            "judged": step in flagged,
            "words": self._first_words(step),
        }

    def _first_words(self, step: int) -> str | None:
        if self._words_edition != self.live.edition or len(self._words) > 10_000:
            self._words, self._words_edition = {}, self.live.edition
        if step not in self._words:
            ids, speller = self.live.store.token_ids(step), self.live.speller
            if ids is None or speller is None:
                return None
            self._words[step] = " ".join(speller.text(ids).split())[:WORDS]
        return self._words[step]

    def document(self, step: int) -> Answer:
        """Return the document of a step, token by token. Raises NotThere if the run has no such step."""
        with self.live.reading():
            try:
                document = open_document(self.live.store, self.live.series, step, self.live.speller)
            except ValueError as error:
                raise NotThere(str(error)) from error
            has_tokenizer = self.live.speller is not None
        return _document(document, has_tokenizer)

    def samples(self, most: int = 200, prompt: str | None = None, first: int = 0, below: int | None = None) -> Answer:
        """Return generated text in order: for documents just before training on them, or for a repeated prompt.

        If there are more than `most`, they are evenly spaced and include the first and the last. Those of a prompt are
        spaced by equal ratios of steps.
        """
        with self.live.reading():
            store = self.live.store
            places = store.samples_between(first, 2**62 if below is None else below, prompt)
            if prompt is None and len(places) > most:
                chosen = np.unique(np.linspace(0, len(places) - 1, most).astype(int))
                ids = [places[place][1] for place in chosen]
            else:
                ids = spread(places, most)
            rows = store.text_samples_of(ids)
            return {
                "edition": self.live.edition,
                "total": len(places),
                "samples": [_sample(row) for row in rows],
                "prompts": [
                    {"prompt": text, "times": len(store.samples_between(0, 2**62, text))} for text in store.prompts()
                ],
            }

    def judged(self) -> list[int]:
        """Return the steps that were flagged as spikes, in order."""
        with self.live.reading():
            below = int(self.live.series["steps"][-1]) + 1 if self.live.series.size else 0
            return [step for step in self.live.store.judged() if step < below]

    def prompts(self) -> list[str]:
        """Return the prompts that were used repeatedly, in the order of their first use."""
        with self.live.reading():
            return self.live.store.prompts()

    def probes(self) -> Answer:
        """Return the re-measured documents and their loss at each measurement."""
        with self.live.reading():
            rows = self.live.store.probes()
            found = {
                about["step"]: about | {"first": about.get("loss"), "measured": []}
                for about in self.about(list(dict.fromkeys(row["document"] for row in rows)))
            }
            for row in rows:
                step = row["document"]
                found[step]["measured"].append(
                    {
                        "distance": row["step"] - step,
                        "step": row["step"],
                        "loss": number(row["loss"]),
                        "accuracy": number(row["accuracy"]),
                        "average": self._average_of(found[step].get("source", ""), row["step"]),
                    }
                )
            return {"edition": self.live.edition, "probes": list(found.values())}

    def _average_of(self, source: str, step: int) -> float | None:
        """The running average of a source's loss after a step, in nats per token."""
        series = self.live.series
        if source not in series.sources:
            return None
        rows = series.sources[source].rows.values()
        place = int(np.searchsorted(rows, series.rows_below(step + 1)))
        return number(float(series.sources[source].average.values()[place - 1])) if place else None

    def probe(self, step: int) -> Answer:
        """Return a re-measured document token by token, before training on it (`distance` None) and each time after.

        Raises NotThere if the document of the step was not re-measured.
        """
        with self.live.reading():
            rows = [row for row in self.live.store.probes() if row["document"] == step]
            if not rows:
                raise NotThere(f"the document of step {step:,} was not re-measured")
            document = self.document(step)
        nothing: list[float | None] = [None]  # nothing predicts the first token
        moments = [{"distance": None, "losses": document["losses"]}] if document["losses"] else []
        moments += [{"distance": row["step"] - step, "losses": nothing + numbers(row["token_losses"])} for row in rows]
        return {"step": step, "texts": document["texts"], "moments": moments}


def _rows(series: Series, first: int, below: int | None) -> tuple[int, int]:
    """The rows of the steps first <= step < below."""
    return series.rows_below(first), series.size if below is None else series.rows_below(below)


def _thinned(steps: list[int]) -> list[int]:
    if len(steps) <= MOST_STEPS_OF_KIND:
        return steps
    return [steps[place] for place in np.linspace(0, len(steps) - 1, MOST_STEPS_OF_KIND).astype(int)]


def _sample(row: Mapping[str, Any]) -> Answer:
    return {name: row[name] for name in ("step", "prompt", "output", "reference", "source", "error")}


def _document(document: OpenedDocument, has_tokenizer: bool) -> Answer:
    gone = None
    if document.ids is None:
        gone = "The tokens of this document are no longer kept (--keep-documents sets how many documents keep theirs)"
    elif not has_tokenizer:
        gone = "The record has no tokenizer to decode this document with"
    first: list[float | None] = [None]  # nothing predicts the first token
    return {
        "step": document.step,
        "previous": document.previous,
        "next": document.next,
        "source": document.source,
        "shard": document.shard,
        "row": document.row,
        "loss": number(document.loss),
        "usual": number(document.usual),
        "excess": number(document.excess),
        "accuracy": number(document.accuracy),
        "gradient_norm": number(document.gradient_norm),
        "learning_rate": number(document.learning_rate),
        "tokens_read": None if document.ids is None else len(document.ids),
        "about_tokens": document.about_tokens,
        "bytes_read": document.bytes_read,
        "document_bytes": document.document_bytes,
        "judged": list(document.judged),
        "gone": gone,
        "texts": None if document.texts is None else list(document.texts),
        "losses": None if document.losses is None else first + numbers(document.losses),
        "ranks": None if document.ranks is None else [None, *document.ranks],
        "samples": [_sample(row) for row in document.samples],
    }
