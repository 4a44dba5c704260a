"""The JSON API, without HTTP: the parameters of each `/api/…` route, and the function that answers it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from viz.page.answers import LARGEST_WINDOW, MOST_POINTS, POINTS, Answers
from viz.page.live_run import LiveRun, NoRun
from viz.page.other_runs import OtherRuns
from viz.page.query import BadQuery, NotThere, Query
from viz.page.text_search import TextSearch
from viz.stats.averages import WINDOW

Answer = dict[str, Any]
LONGEST_TEXT = 500
SEARCH_SECONDS = 1.0
"""How long a search waits for documents to be indexed before it answers."""


@dataclass(frozen=True)
class Service:
    """The run and everything that answers questions about it."""

    live: LiveRun
    answers: Answers
    search: TextSearch
    other_runs: OtherRuns

    @classmethod
    def of(cls, folder: Path, others: Sequence[Path] = ()) -> "Service":
        live = LiveRun(folder)
        return cls(live, Answers(live), TextSearch(), OtherRuns(live, others))

    def read_ahead(self) -> None:
        """Load the run before the first request: a million steps take seconds."""
        with suppress(NoRun), self.live.reading():
            pass

    def close(self) -> None:
        self.search.close()

    def run(self, query: Query) -> Answer:
        return self.answers.run()

    def series(self, query: Query) -> Answer:
        other = query.text("run")
        answers = self.answers if other is None else self.other_runs.answers_of(other)
        return answers.series(query.number("from", 0), query.optional("to"), *_axis(query))

    def sources(self, query: Query) -> Answer:
        return self.answers.sources(*_axis(query))

    def spikes(self, query: Query) -> Answer:
        best = query.word("side", ("above", "below"), "above") == "below"
        most = query.number("limit", 50, 1, 1000)
        return self.answers.spikes(most, query.text("source"), query.optional("from"), best=best)

    def samples(self, query: Query) -> Answer:
        number, prompt = query.optional("prompt"), None
        if number is not None:
            known = self.answers.prompts()
            if number >= len(known):
                raise NotThere(f"prompt: this run has {len(known)} repeated prompts, found {number}")
            prompt = known[number]
        most = query.number("limit", 200, 1, 2000)
        return self.answers.samples(most, prompt, query.number("from", 0), query.optional("to"))

    def events(self, query: Query) -> Answer:
        return self.answers.events(query.number("limit", 300, 1, 10_000), query.text("kind"))

    def probes(self, query: Query) -> Answer:
        return self.answers.probes()

    def find(self, query: Query) -> Answer:
        text, most = query.text("q", LONGEST_TEXT), query.number("limit", 50, 1, 500)
        if not text:
            raise BadQuery("q: expected the text to search for")
        with self.live.reading():
            series = self.live.series
            steps = int(series["steps"][-1]) + 1 if series.size else 0
            edition, store = self.live.edition, self.live.record / "run.db"
        self.search.follow(store, edition, steps)
        self.search.wait(SEARCH_SECONDS)
        self.search.follow(store, edition, steps)  # in case the work in progress was for another edition
        found = self.search.find(text, edition, most)
        entries = self.answers.about([hit["step"] for hit in found["hits"]])
        hits = [entry | hit for entry, hit in zip(entries, found["hits"], strict=True)]
        return {"edition": edition, "steps": steps} | found | {"hits": hits}

    def runs(self, query: Query) -> Answer:
        return {"runs": self.other_runs.known()}

    def compare(self, query: Query) -> Answer:
        run_id = query.text("run")
        if not run_id:
            raise BadQuery("run: expected the run_id of a run in /api/runs")
        return self.other_runs.compare(run_id, query.number("points", POINTS, 10, MOST_POINTS), query.number("from", 0))


def _axis(query: Query) -> tuple[int, int, bool]:
    """Width in pixels, window of the averages in documents, whether the axis is logarithmic."""
    return (
        query.number("points", POINTS, 10, MOST_POINTS),
        query.number("window", WINDOW, 1, LARGEST_WINDOW),
        query.word("scale", ("linear", "log"), "linear") == "log",
    )


QUERIES: Mapping[str, tuple[Callable[[Service, Query], Answer], Sequence[str]]] = {
    "run": (Service.run, ()),
    "series": (Service.series, ("from", "to", "points", "window", "scale", "run")),
    "sources": (Service.sources, ("points", "window", "scale")),
    "spikes": (Service.spikes, ("side", "source", "from", "limit")),
    "samples": (Service.samples, ("prompt", "from", "to", "limit")),
    "probes": (Service.probes, ()),
    "events": (Service.events, ("kind", "limit")),
    "search": (Service.find, ("q", "limit")),
    "runs": (Service.runs, ()),
    "compare": (Service.compare, ("run", "from", "points")),
}
"""`/api/NAME`: the function that answers, and its parameters."""
