"""Measure learning per document: `python -m benchmarks.learning [--quick] [--jobs N]`.

Trains the same model on the same documents of the embedded library, in the same order, with the same tokenizer, warm-up
and constant learning rate: with our defaults, with a textbook AdamW (betas (0.9, 0.95), weight decay 0.1) and with the
`Trainer` of transformers, both at four rates. Evaluates each on the held-out documents and prints the table of
`docs/learning.md`.

Each run is a file in `--runs` that is kept between calls; those of the table are in `benchmarks/learned/`. An
interrupted run resumes (one of transformers starts again). A run with another recipe or other documents counts as
missing. `--quick` makes one seed of 1,000 documents. `--only PATTERN` makes only some of the runs, `--table` none, and
`--draw FILE.png` draws the curves. `--time` measures the seconds per document of ours and of transformers in turns; the
machine should be idle. Needs `requirements-bench.txt`.
"""

import argparse
import dataclasses
import fnmatch
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.learning_runs import (
    BASELINE_RATES,
    GOAL,
    RATE,
    Results,
    Run,
    embedded_data,
    plan,
    seconds_per_document,
    train,
)

LEARNED = Path(__file__).parent / "learned"
Lengths = np.ndarray[Any, np.dtype[Any]]
"""(D,) one number per held-out document."""


def table(results: Results, runs: Sequence[Run]) -> list[str]:
    """Return the lines of the table for the runs that exist. Losses are nats per token on the held-out documents."""
    lengths = np.array([len(ids) - 1 for ids in results.data.held_out])
    goal = max(run.documents for run in runs if run.contender == "adamw")
    there = {run: curve for run in runs if run.documents in (curve := _curve(results, run))}
    lines = [f"{len(lengths)} held-out documents, {lengths.sum():,} predictions", ""]
    lines += ["| contender | size | documents | rate | seeds | loss | not averaged |", "|---|---|---|---|---|---|---|"]
    for key in sorted({(run.contender, run.size, run.documents, run.rate) for run in there}):
        seeds = [run for run in there if (run.contender, run.size, run.documents, run.rate) == key]
        losses = [there[run][run.documents] for run in seeds]
        ends = [results.read(run)["held_out"][str(run.documents)] for run in seeds]
        last = [sum(end["last"]) / float(lengths.sum()) for end in ends if "last" in end]  # stored only at the end
        contender, size, documents, rate = key
        lines.append(
            f"| {contender} | {size} | {documents:,} | {rate:.2e} | {', '.join(str(run.seed) for run in seeds)} | "
            f"{_spread(losses)} | {_spread(last) if last else ''} |"
        )
    rivals = [run for run in there if run.contender == "adamw"]
    if rivals:
        rates = {run.rate for run in rivals}
        best = min(rates, key=lambda rate: min(there[run][goal] for run in rivals if run.rate == rate))
        lines += ["", *_comparison(results, there, best, goal, lengths)]
    lines += [_steadiness(results, run, there[run]) for run in there if run.documents > goal]
    return lines


def _comparison(
    results: Results, there: Mapping[Run, Mapping[int, float]], best: float, goal: int, lengths: Lengths
) -> list[str]:
    """Compare ours with transformers and with AdamW, each at its best rate, and with ours at other rates, by seed."""
    lines, gaps, ratios = [], [], []
    for ours in (
        run for run in there if (run.contender, run.size, run.rate, run.documents) == ("ours", "small", RATE, goal)
    ):
        rival = dataclasses.replace(ours, contender="adamw", rate=best)
        if rival in there:
            gap, error = _paired(_nats(results, rival, "last"), _nats(results, ours, "average"), lengths)
            loss, needed = there[rival][goal], _documents_to(there[ours], there[rival][goal])
            gaps.append(gap)
            ratios.append(goal / needed)
            lines += _against_transformers(results, there, ours, loss, needed, lengths)
            lines.append(
                f"seed {ours.seed}: {gap:.3f} ± {error:.3f} below textbook AdamW at {best:.1e} (paired by document); "
                f"ours reaches its loss of {loss:.3f} after {needed:,.0f} documents: {goal / needed:.1f} x fewer"
            )
        for other in (run for run in there if run.contender == "ours" and run.size == "small" and run.rate != RATE):
            if (other.seed, other.documents) == (ours.seed, goal):
                gap, error = _paired(_nats(results, other, "average"), _nats(results, ours, "average"), lengths)
                lines.append(f"seed {ours.seed}: --learning-rate {other.rate:.1e} costs {gap:+.3f} ± {error:.3f}")
    if len(gaps) > 1:
        lines.append(f"all seeds: {_spread(gaps)} below textbook AdamW; {_spread(ratios)} x fewer documents")
    return lines


def _steadiness(results: Results, run: Run, curve: Mapping[int, float]) -> str:
    """Return how far the mean of 200 training losses and the held-out loss of a long run rose above their lowest value.

    The former also rises when the documents get harder; the latter is always measured on the same documents.
    """
    losses = [math.nan if loss is None else loss for loss in results.read(run)["losses"]]
    averages = np.convolve(losses, np.ones(200) / 200, "valid")
    held_out = np.array([curve[count] for count in sorted(curve)])
    rises = [float(np.max(values - np.minimum.accumulate(values))) for values in (averages, held_out)]
    return (
        f"{run.name}: {run.documents:,} documents; losses not finite: {np.isnan(losses).sum()}; largest rise above the "
        f"lowest value so far: average of 200 {rises[0]:.2f} nats, held-out loss {rises[1]:.3f}"
    )


def _against_transformers(
    results: Results, there: Mapping[Run, Mapping[int, float]], ours: Run, loss: float, needed: float, lengths: Lengths
) -> list[str]:
    """Compare with transformers at its best rate: at the end, and in time to `loss`, for which ours needs `needed`."""
    theirs = [run for run in there if (run.contender, run.size, run.seed) == ("transformers", "small", ours.seed)]
    if not theirs or not (results.folder / "seconds.json").exists():
        return []
    best = min(theirs, key=lambda run: (_documents_to(there[run], loss), there[run][run.documents]))
    measured = json.loads((results.folder / "seconds.json").read_text())
    seconds = {name: statistics.median(values) for name, values in measured.items()}
    lines = []
    strongest = min(theirs, key=lambda run: there[run][run.documents])
    end = there[strongest][strongest.documents]
    if strongest.documents == ours.documents and math.isfinite(ours_needs := _documents_to(there[ours], end)):
        gap, error = _paired(_nats(results, strongest, "last"), _nats(results, ours, "average"), lengths)
        faster = strongest.documents * seconds["transformers"] / (ours_needs * seconds["ours"])
        lines.append(
            f"seed {ours.seed}: {gap:.3f} ± {error:.3f} below transformers at {strongest.rate:.1e} (paired by "
            f"document); ours reaches its loss of {end:.3f} after {ours_needs:,.0f} documents: "
            f"{strongest.documents / ours_needs:.1f} x fewer, {faster:.1f} x less time"
        )
    documents = _documents_to(there[best], loss)
    at_least = "" if math.isfinite(documents) else "more than "
    documents = min(documents, best.documents)
    ratio = documents * seconds["transformers"] / (needed * seconds["ours"])
    return [
        *lines,
        f"seed {ours.seed}: to the loss of textbook AdamW, transformers at {best.rate:.1e} needs {at_least}"
        f"{documents:,.0f} documents of {1000 * seconds['transformers']:.0f} ms, "
        f"ours {needed:,.0f} of {1000 * seconds['ours']:.0f} ms: {at_least}{ratio:.1f} x the time",
    ]


def _nats(results: Results, run: Run, which: str) -> Lengths:
    """Return the nats of each held-out document at the end of a run, with the `last` weights or their `average`."""
    return np.array(results.read(run)["held_out"][str(run.documents)][which])


def _curve(results: Results, run: Run) -> dict[int, float]:
    """Return documents → held-out loss; for ours with the averaged weights, the others have only the last ones."""
    which, found = "average" if run.contender == "ours" else "last", results.read(run)["held_out"]
    tokens = sum(len(ids) - 1 for ids in results.data.held_out)
    return {int(count): sum(found[count][which]) / tokens for count in found if int(count) <= run.documents}


def _documents_to(curve: Mapping[int, float], loss: float) -> float:
    """Return the documents after which a curve first reaches a loss, interpolated linearly; inf if it never does."""
    counts = sorted(curve)
    if curve[counts[0]] <= loss:
        return counts[0]
    for before, after in itertools.pairwise(counts):
        if curve[after] <= loss:
            return before + (after - before) * (curve[before] - loss) / (curve[before] - curve[after])
    return float("inf")


def _paired(theirs: Lengths, ours: Lengths, lengths: Lengths) -> tuple[float, float]:
    """Return the difference in nats per token over documents of these lengths, and its standard error (of a ratio)."""
    differences = theirs - ours
    gap = differences.sum() / lengths.sum()
    error = (differences - gap * lengths).std(ddof=1) * len(differences) ** 0.5 / lengths.sum()
    return float(gap), float(error)


def _spread(values: Sequence[float]) -> str:
    """Format the mean, ± the standard deviation if there are several seeds."""
    mean = f"{statistics.fmean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def draw(results: Results, runs: Sequence[Run], path: Path) -> None:
    """Draw the held-out loss over documents, and the cost of other learning rates at each size that has runs."""
    ends: dict[str, dict[float, float]] = {}
    for run in (run for run in runs if (run.contender, run.seed) == ("ours", 0) and run.documents <= GOAL):
        curve = _curve(results, run)
        if run.documents in curve:
            ends.setdefault(f"{run.size}, {run.documents:,} documents", {})[run.rate] = curve[run.documents]
    several = {label: losses for label, losses in ends.items() if len(losses) > 1}
    figure = Figure(figsize=(11 if several else 6.5, 4.2), layout="constrained")
    learning, *rest = figure.subplots(1, 2 if several else 1, squeeze=False)[0]
    usual = dict(zip(BASELINE_RATES, (":", "-", "--", "-."), strict=True))
    styles = {"ours": {RATE / 3: ":", RATE: "-", RATE * 3: "--"}, "adamw": usual, "transformers": usual}
    colors = {"ours": "#0072b2", "adamw": "#d55e00", "transformers": "#555555"}
    for run in runs:
        curve = _curve(results, run)
        if run.size == "small" and run.seed == 0 and len(curve) > 2 and run.documents == GOAL:
            learning.plot(
                list(curve),
                list(curve.values()),
                label=f"{run.contender}, {run.rate:.1e}",
                color=colors[run.contender],
                linewidth=2 if (run.contender, run.rate) == ("ours", RATE) else 1,
                linestyle=styles[run.contender][run.rate],
            )
    learning.set(xlabel="documents", ylabel="held-out loss, nats per token", title="small, one seed")
    learning.legend(frameon=False)
    for rates in rest:
        for label, losses in several.items():
            order = sorted(losses)
            rates.plot(order, [losses[rate] - min(losses.values()) for rate in order], marker="o", label=label)
        tried = sorted({rate for losses in several.values() for rate in losses})
        rates.set_xscale("log")
        rates.set_xticks(tried, labels=[f"{rate:.1e}" for rate in tried])
        rates.minorticks_off()
        rates.set(xlabel="--learning-rate", ylabel="nats per token above the best", title="other learning rates")
        rates.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="make one seed of 1,000 documents")
    parser.add_argument("--runs", type=Path, default=LEARNED, metavar="DIR", help="where the runs are kept")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="make only these runs, e.g. 'ours-small-*'")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time; they share the cores")
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--time", action="store_true", help="measure seconds per document, in turns")
    parser.add_argument("--draw", type=Path, metavar="FILE.png", help="only draw the curves and print the table")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    runs = plan(arguments.quick)
    if arguments.jobs < 1:
        parser.error(f"--jobs {arguments.jobs}: expected a number of at least 1")
    if not any(fnmatch.fnmatch(run.name, arguments.only) for run in runs):
        parser.error(f"--only {arguments.only}: matches no run; the names look like {runs[0].name}")
    if (arguments.table or arguments.draw) and not arguments.runs.is_dir():
        parser.error(f"--runs {arguments.runs}: folder not found")
    if arguments.draw and (arguments.draw.suffix != ".png" or not arguments.draw.parent.is_dir()):
        parser.error(f"--draw {arguments.draw}: expected a name that ends in .png, in an existing folder")
    try:
        arguments.runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--runs {arguments.runs}: {error.strerror}")
    results = Results(arguments.runs, embedded_data())
    if arguments.one:
        train(next(run for run in runs if f"{run.name}-{run.documents}" == arguments.one), results)
        return
    if arguments.time:
        (arguments.runs / "seconds.json").write_text(json.dumps(seconds_per_document()))
    elif arguments.draw:
        draw(results, runs, arguments.draw)
    elif not arguments.table:
        _train_all([run for run in runs if fnmatch.fnmatch(run.name, arguments.only)], arguments)
    print("\n".join(table(results, runs)))


def _train_all(runs: Sequence[Run], arguments: argparse.Namespace) -> None:
    """Train each run in its own process, `--jobs` of them at the same time."""
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs)

    locks = {run.name: Lock() for run in runs}  # a longer run continues from the files of a shorter one

    def start(run: Run) -> None:
        own = ["--one", f"{run.name}-{run.documents}", *(["--quick"] if arguments.quick else [])]
        command = [sys.executable, "-m", "benchmarks.learning", "--runs", str(arguments.runs), *own]
        with locks[run.name]:
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(start, runs))


if __name__ == "__main__":
    main()
