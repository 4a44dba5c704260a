"""What can be asked by `/api/…`: the parameters of each question, and who answers it. Knows nothing of HTTP."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from viz.answers import LARGEST_WINDOW, MOST_POINTS, POINTS, Answers
from viz.live_run import LiveRun
from viz.pairs import Pairs
from viz.query import BadQuery, Query
from viz.smoothing import WINDOW
from viz.text_search import TextSearch

Answer = dict[str, Any]
LONGEST_TEXT = 500
SEARCH_SECONDS = 1.0
"""That a search waits for documents that are not in the index yet."""


@dataclass(frozen=True)
class Service:
    """What the routes answer from."""

    live: LiveRun
    answers: Answers
    search: TextSearch
    pairs: Pairs

    @classmethod
    def of(cls, folder: Path, others: Sequence[Path] = ()) -> "Service":
        live = LiveRun(folder)
        return cls(live, Answers(live), TextSearch(), Pairs(live, others))

    def run(self, query: Query) -> Answer:
        return self.answers.run()

    def series(self, query: Query) -> Answer:
        first, below = query.number("from", 0), query.number("to")
        points, window = (
            query.number("points", POINTS, 10, MOST_POINTS),
            query.number("window", WINDOW, 1, LARGEST_WINDOW),
        )
        log = query.word("scale", ("linear", "log"), "linear") == "log"
        return self.answers.series(first or 0, below, points or POINTS, window or WINDOW, log)

    def sources(self, query: Query) -> Answer:
        points, window = (
            query.number("points", POINTS, 10, MOST_POINTS),
            query.number("window", WINDOW, 1, LARGEST_WINDOW),
        )
        log = query.word("scale", ("linear", "log"), "linear") == "log"
        return self.answers.sources(points or POINTS, window or WINDOW, log)

    def spikes(self, query: Query) -> Answer:
        best = query.word("side", ("above", "below"), "above") == "below"
        return self.answers.spikes(
            query.number("limit", 50, 1, 1000) or 50, query.text("source"), query.number("from"), best=best
        )

    def samples(self, query: Query) -> Answer:
        most = query.number("limit", 200, 1, 2000) or 200
        prompt = query.text("prompt", 100_000)
        return self.answers.samples(most, prompt, query.number("from", 0) or 0, query.number("to"))

    def events(self, query: Query) -> Answer:
        return self.answers.events(query.number("limit", 300, 1, 10_000) or 300, query.text("kind"))

    def find(self, query: Query) -> Answer:
        text = query.text("q", LONGEST_TEXT)
        if not text:
            raise BadQuery("q: expected the text to look for")
        with self.live.lock:
            self.live.refresh()
            series = self.live.series
            steps = int(series["steps"][-1]) + 1 if series.size else 0
            edition, store = self.live.edition, self.live.record / "run.db"
        self.search.follow(store, edition, steps)
        self.search.wait(SEARCH_SECONDS)
        found = self.search.find(text, query.number("limit", 50, 1, 500) or 50)
        hits = [self.answers.about(hit["step"]) | hit for hit in found["hits"]]
        return {"edition": edition, "steps": steps, "indexed_below": self.search.indexed_below} | found | {"hits": hits}

    def probes(self, query: Query) -> Answer:
        return self.answers.probes()

    def runs(self, query: Query) -> Answer:
        return {"runs": self.pairs.known()}

    def compare(self, query: Query) -> Answer:
        run_id = query.text("run")
        if not run_id:
            raise BadQuery("run: expected the id of one of /api/runs")
        points, since = query.number("points", POINTS, 10, MOST_POINTS), query.number("from", 0)
        return self.pairs.compare(run_id, points or POINTS, since or 0)


QUERIES: Mapping[str, tuple[Callable[[Service, Query], Answer], Sequence[str]]] = {
    "run": (Service.run, ()),
    "series": (Service.series, ("from", "to", "points", "window", "scale")),
    "sources": (Service.sources, ("points", "window", "scale")),
    "spikes": (Service.spikes, ("side", "source", "from", "limit")),
    "samples": (Service.samples, ("prompt", "from", "to", "limit")),
    "probes": (Service.probes, ()),
    "events": (Service.events, ("kind", "limit")),
    "search": (Service.find, ("q", "limit")),
    "runs": (Service.runs, ()),
    "compare": (Service.compare, ("run", "from", "points")),
}
"""`/api/NAME`: what answers, and the parameters that it knows."""
