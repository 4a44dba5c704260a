"""What the numbers of a run say, in one line: how low the loss is, whether it falls beyond noise, what went wrong."""

import math

import numpy as np

from viz.record.schema import SPIKES
from viz.stats.averages import WINDOW, Floats
from viz.views.run_view import View

FEWEST = 20  # documents on either side of a comparison
_ODD = {
    "spike": ("spike", "spikes"),
    "skipped update": ("update refused", "updates refused"),
    "roll-back": ("roll-back", "roll-backs"),
    "retry": ("retry of the source", "retries of the source"),
}


def verdict(view: View) -> str:
    """The line. The loss is the running average of the chart, ± two standard errors."""
    losses = view.column("loss")
    losses = losses[np.isfinite(losses)]
    if len(losses) < 2:
        return "Too few documents to tell anything yet"
    average, error = (
        float(one.values(view.count)[-1]) for one in (view.series.averages.loss, view.series.averages.loss_error)
    )
    # A step that was made again has its spike again, and it is the same one; the others happen each time.
    counts = {kind: len(set(steps) if kind in SPIKES else steps) for kind, steps in view.events.items()}
    odd = [f"{counts[kind]:,} {words[counts[kind] > 1]}" for kind, words in _ODD.items() if kind in counts]
    waited = view.series.averages.waited_share.values(view.count)[-1]
    guessing = math.log(view.run["vocab_size"]) if view.run.get("vocab_size") else math.inf
    of = f"~{WINDOW}" if len(losses) > WINDOW else f"all {len(losses)}"
    parts = (
        f"Loss {average:.2f} ± {2 * error:.2f} (average of {of})",
        f"worse than guessing ({guessing:.2f})" if average > guessing + 0.5 else "",
        _change(losses),
        ", ".join(odd),
        f"{waited:.0%} of the time waits for documents" if waited > 0.1 else "",
    )
    return " · ".join(filter(None, parts))


def _change(losses: Floats) -> str:
    """The last quarter of the documents against the quarter before; of a short run the halves."""
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
