"""The other runs that the page can compare its run with, by their ids."""

import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from viz.page.answers import Answers
from viz.page.live_run import LiveRun, NoRun
from viz.page.query import NotThere
from viz.record.reader import StoreReader
from viz.record.runs import FoundRun, find_runs, record_of
from viz.stats.averages import extremes
from viz.stats.downsample import number, numbers
from viz.stats.paired_difference import RunningAverage
from viz.views.comparison import Comparison, compare

NAMES = ("this run", "the other run")


class OtherRuns:
    """The runs in the folder of the page's run, including those moved to `earlier/`, and in the folders `others`."""

    def __init__(self, live: LiveRun, others: Sequence[Path] = ()) -> None:
        self._live = live
        self._others = others
        self._lock = threading.Lock()  # one comparison at a time: it keeps a core busy; also guards `_opened`
        self._opened: dict[str, Answers] = {}

    def known(self) -> list[dict[str, Any]]:
        """Return each run, the newest first; `is_this` marks the run of the page."""
        with self._live.reading():
            this = str(self._live.run.get("run_id") or "")
        return [
            {
                "run_id": run.run_id,
                "folder": str(run.record),
                "model": run.model,
                "source": run.source,
                "documents": run.documents,
                "loss": number(run.loss),
                "started": run.started,
                "outcome": run.outcome,
                "is_this": run.run_id == this,
            }
            for run in self._runs().values()
            if not run.problem
        ]

    def _runs(self) -> dict[str, FoundRun]:
        with self._live.reading():
            places = [self._live.record]
        for other in self._others:
            try:
                places.append(record_of(other))
            except ValueError:  # does not exist yet, or not any more
                continue
        return {run.run_id: run for place in dict.fromkeys(places) for run in find_runs(place) if run.run_id}

    def answers_of(self, run_id: str) -> Answers:
        """Return the answers about another run. Raises NotThere if there is no such run."""
        with self._lock:
            return self._answers_of(run_id)

    def _answers_of(self, run_id: str) -> Answers:
        if run_id not in self._opened:
            runs = self._runs()
            if run_id not in runs:
                raise NotThere(f"there is no run {run_id[:100]!r} here; known: {', '.join(runs) or 'none'}")
            self._opened[run_id] = Answers(LiveRun(runs[run_id].record))
        answers = self._opened[run_id]
        try:
            with answers.live.reading():
                found = answers.live.run.get("run_id")
        except NoRun as error:
            raise NotThere(f"run {run_id} can't be read any more: {error}") from error
        if found != run_id:  # another run took its place
            del self._opened[run_id]
            return self._answers_of(run_id)
        return answers

    def compare(self, run_id: str, points: int, since: int = 0) -> dict[str, Any]:
        """Compare this run with another, document by document, from step `since` of this run.

        Raises NotThere if there is no such run, or if the two share no document.
        """
        with self._lock:
            runs = (self._live, self._answers_of(run_id).live)
            try:
                columns, paths = [], []
                for live in runs:
                    with live.reading():
                        columns.append(live.series.columns() if live.series.size else None)
                        paths.append(live.record / "run.db")
                with StoreReader(paths[0]) as a, StoreReader(paths[1]) as b:
                    found = compare(a, b, NAMES, since, columns)
            except (OSError, ValueError, sqlite3.Error) as error:
                raise NotThere(str(error)) from error
        return _in_json(found, points)


def _in_json(found: Comparison, points: int) -> dict[str, Any]:
    sentence = found.sentence()
    rows = extremes(found.differences, points)
    return {
        "names": list(found.names),
        "about": list(found.about),
        "sentence": sentence[:1].upper() + sentence[1:],
        "notes": found.notes(),
        "unit": found.unit,
        "documents": found.overall.documents,
        "difference": number(found.overall.value),
        "half_width": number(found.overall.half_width),
        "sources": [
            {
                "source": one.name,
                "difference": number(one.value),
                "half_width": number(one.half_width),
                "documents": one.documents,
            }
            for one in found.sources
        ],
        "curves": [_curve(one, points) for one in found.curves],
        "difference_curve": _curve(found.difference_curve, points),
        "single": {"steps": found.steps[rows].tolist(), "values": numbers(found.differences[rows])},
    }


def _curve(found: RunningAverage, points: int) -> dict[str, Any]:
    rows = extremes(found.average, points)
    return {
        "steps": found.steps[rows].tolist(),
        "values": numbers(found.average[rows]),
        "band": numbers(np.abs(found.band[rows])),
        "window": found.window,
    }
