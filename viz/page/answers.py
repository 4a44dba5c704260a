"""What a page, a script or the report asks of a run as a whole, as plain values of JSON (docs/page.md has them)."""

from typing import Any

import numpy as np

from viz.page.document_answers import DocumentAnswers
from viz.page.live_run import LiveRun
from viz.record.runs import find_runs
from viz.stats.averages import WINDOW, debiased_average
from viz.stats.downsample import Curve
from viz.stats.reduction import finite, number, numbers, outline
from viz.stats.series import Series
from viz.views.run_view import View
from viz.views.verdict import verdict

Answer = dict[str, Any]

POINTS, MOST_POINTS = 800, 4000
LARGEST_WINDOW = 100_000
MOST_STEPS_OF_KIND = 2000
"""Marks of one kind of events on a curve."""
SECRET = ("tokenizer", "id")
"""Columns of the run that are not sent: bytes, and a key that says nothing."""


class Answers(DocumentAnswers):
    """Answers about the run as a whole, too."""

    def __init__(self, live: LiveRun) -> None:
        super().__init__(live)
        self._resume: tuple[int, str | None] = (-1, None)
        """Of which edition, and the command that goes on with it."""

    def run(self) -> Answer:
        """What the run is, how far it has come, and what its numbers say."""
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
                "run": finite({name: value for name, value in run.items() if name not in SECRET}),
            }

    def _resume_command(self) -> str | None:
        """What goes on with this run, to be typed where the server was started; None where nothing does."""
        if self._resume[0] != self.live.edition:
            runs = find_runs(self.live.record)
            mine = [run.resume_command for run in runs if run.run_id == self.live.run.get("run_id")]
            self._resume = (self.live.edition, mine[0] if mine else None)
        return self._resume[1]

    def series(
        self, first: int = 0, below: int | None = None, points: int = POINTS, window: int = WINDOW, log: bool = False
    ) -> Answer:
        """The curves, first <= step < below: single documents and averages, reduced to an axis of `points` pixels.

        Averages are over all documents up to each step, whatever is shown.
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
        """Each source, the most frequent first: its share, and the average of its losses over time.

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
        """What has happened, the newest first, and how often each kind did, and where."""
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


def _rows(series: Series, first: int, below: int | None) -> tuple[int, int]:
    """The rows of steps, first <= step < below."""
    return series.rows_below(first), series.size if below is None else series.rows_below(below)


def _thinned(steps: list[int]) -> list[int]:
    if len(steps) <= MOST_STEPS_OF_KIND:
        return steps
    return [steps[place] for place in np.linspace(0, len(steps) - 1, MOST_STEPS_OF_KIND).astype(int)]
