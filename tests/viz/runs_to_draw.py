"""Synthetic runs for charts: columns of a store, and views of them."""

from typing import Any

import numpy as np

from viz.record.reader import Columns
from viz.stats.series import Series
from viz.views.run_view import StandOut, View, by_position, furthest_above

RUN: dict[str, Any] = {
    "source": "python-library",
    "note": "SlimPajama out of reach (no network)",
    "model": "small 13.8 M",
    "config": {"warmup_steps": 50, "num_steps": 1_000_000, "viz_interval": 50},
    "vocab_size": 8192,
    "ended": None,
}
SAMPLE: dict[str, Any] = {
    "step": 2950,
    "prompt": "def parse_header(line):\n    ",
    "input": "def parse_header(line):\n    '''Parse a header'''",
    "output": "return line.split(':', 1)\n" * 30,
    "reference": "'''Parse a Content-type like header.\n\n    Return the main content-type and a dictionary.''' " * 30,
    "error": None,
}
MOMENTS = [SAMPLE | {"step": step, "input": "", "reference": None} for step in (0, 50, 800, 2400)]
HOSTILE = (
    "$x^{$ \\frac{ $$ \\ _{}^ %s <b>&amp; \x00\x07\x1b[31m \u202e\u2066 \ud83d\ud800 😀 日本語 עברית ไทย e\u0301\u0301 "
    "\r\n\t\v\f\u2028" + "W" * 3000
)


def columns_of(count: int, sources: int = 3, ugly: bool = False) -> Columns:
    """A run of `count` documents: falling loss, warm-up; if `ugly`, NaN, infinities and spikes in every column."""
    random = np.random.default_rng(count)
    steps = np.arange(count)
    names = np.array([f"RedPajamaCommonCraw{i}" for i in range(sources)], dtype=object)
    columns: Columns = {
        "steps": steps,
        "loss": 3 + 6 * np.exp(-steps / 300) + random.normal(0, 0.6, count),
        "accuracy": np.clip(0.4 - 0.35 * np.exp(-steps / 300) + random.normal(0, 0.07, count), 0, 1),
        "throughput": np.abs(random.normal(5200, 600, count)),
        "learning_rate": 1e-3 * np.minimum(1, np.maximum(steps, 1) / 1000),
        "gradient_norm": random.lognormal(0, 0.5, count),
        "tokens": np.full(count, 255.0),
        "bytes": np.full(count, 1000.0),
        "seconds": np.full(count, 255 / 5200.0),
        "seconds_waited": np.full(count, 0.002),
        "unigram_entropy": 6.6 - 2.5 * np.exp(-steps / 20),
        "source": names[random.integers(0, sources, count)],
    }
    if ugly:
        for name, spike in (("loss", 1e4), ("throughput", 1e9), ("gradient_norm", 1e12), ("learning_rate", 5.0)):
            columns[name][count // 3] = np.nan
            columns[name][count // 4] = np.inf
            columns[name][count // 2] = spike
        columns["gradient_norm"][-1] = 0.0
    return columns


def view_of(columns: Columns, *, run: dict[str, Any] | None = None, **shown: Any) -> View:
    """A view of these columns with everything else that a chart shows; `shown` replaces parts of it."""
    series = Series()
    series.extend(columns)
    count = len(columns["steps"])
    described = RUN | (run or {})
    found = furthest_above(View(described, count, series, count))
    losses = [np.random.default_rng(step).gamma(4, 1, 255) for step in range(20)]
    parts: dict[str, Any] = {
        "stand_outs": [
            StandOut(row, columns["loss"][row], series.excess.values()[row], columns["source"][row], "six words of it")
            for row in found
        ],
        "events": {
            "checkpoint": range(count // 5, count, max(count // 5, 1)),
            "resume": [count // 2],
            "spike": [count // 3, count // 2],
            "retry": [count // 4],
        }
        if count
        else {},
        "positions": [by_position(losses[:10]), by_position(losses[10:])] if count > 10 else [],
        "moments": MOMENTS if count > 1 else [],
        "sample": SAMPLE if count else None,
    }
    return View(described, count, series, count, **(parts | shown))
