"""Compare the whole run with the bare step and the `Trainer` of transformers, with our defaults but compiled."""

import itertools
import statistics
import tempfile
from pathlib import Path

from benchmarks import as_it_comes
from benchmarks.contenders import (
    LENGTH,
    make_step,
    mean_step,
    own_process,
    random_documents,
    run_command,
    seconds_of_run,
    time_transformers,
    write_corpus,
)
from benchmarks.timing import in_words, print_table, ratio, take_turns

STEPS, FIRST = 300, 100
"""Steps per measurement, and the first that counts: earlier ones fill caches and start the drawing process."""

INTERVAL, DRAWN = 50, 5
"""Steps between two generations and two charts; steps after it while the chart is drawn."""


def main(size: str, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder / "corpus.jsonl.zst", 3000)
        numbers, seconds = itertools.count(), dict[str, list[float]]()

        def whole(dtype: str = "auto") -> float:
            run = folder / f"run{next(numbers)}"
            run.mkdir()
            flags = ["--dataset", str(folder / "corpus.jsonl.zst"), "--model-size", size, "--steps", str(STEPS)]
            run_command(run, *flags, "--compile", "--max-seq-length", str(LENGTH), "--dtype", dtype)
            seconds[dtype] = seconds_of_run(run, FIRST)
            return 1000 * statistics.fmean(seconds[dtype])

        def transformers(bf16: bool, compiled: bool, steps: int = 60, first: int = 20) -> float:
            with own_process(as_it_comes) as process:
                return process.submit(
                    time_transformers, size, steps=steps, first=first, bf16=bf16, compiled=compiled
                ).result()

        step, documents = make_step(size, compiled=True), random_documents(40)
        for dtype in ("auto", "fp32"):
            whole(dtype)  # fills the compiler cache
        kinds = list(itertools.product((False, True), (False, True)))
        theirs = {kind: transformers(*kind, steps=40, first=15) for kind in kinds}
        best = min(theirs, key=lambda kind: theirs[kind])
        best_fp32 = min(((False, False), (False, True)), key=lambda kind: theirs[kind])

        times = take_turns(
            {
                "whole": whole,
                "bare": lambda: mean_step(step, documents),
                "best": lambda: transformers(*best),
                "as it ships": lambda: transformers(False, False),
                "whole, fp32": lambda: whole("fp32"),
                "best, fp32": lambda: transformers(*best_fp32),
            },
            rounds,
        )
    found = ", ".join(f"{_kind(*kind)} {theirs[kind]:.0f}" for kind in kinds)
    labels = [
        ("our whole run: .jsonl.zst, store, charts and a generation every 50 steps", "whole", "whole"),
        ("our bare step on prepared ids", "bare", "whole"),
        (f"`Trainer` of transformers at its best ({_kind(*best)})", "best", "whole"),
        ("the same with its defaults (fp32, eager)", "as it ships", "whole"),
        ("our whole run in fp32", "whole, fp32", "whole, fp32"),
        (f"`Trainer` of transformers at its best in fp32 ({_kind(*best_fp32)})", "best, fp32", "whole, fp32"),
    ]
    print_table(
        f"`{size}`, documents of {LENGTH} tokens, one per step",
        [
            ("what", "per step", "speed of our whole run ÷ its speed"),
            *((label, in_words(times[name]), f"{ratio(times, name, ours):.2f}") for label, name, ours in labels),
        ],
    )
    print(f"transformers, ms per step, once each: {found}\n")
    _accounts(seconds["auto"])


def _accounts(seconds: list[float]) -> None:
    """Print how much longer than the median step the others take, by their distance from a generation."""
    usual, mean = statistics.median(seconds), statistics.fmean(seconds)
    after = [statistics.fmean(seconds[place::INTERVAL]) - usual for place in range(INTERVAL)]
    parts = [
        ("most steps (median)", usual),
        ("a generation before every 50th step", after[0] / INTERVAL),
        (f"the {DRAWN} steps after it, while the chart is drawn", sum(after[1 : DRAWN + 1]) / INTERVAL),
        ("all others", sum(after[DRAWN + 1 :]) / INTERVAL),
        ("all (mean)", mean),
    ]
    print_table(
        "Where the time of a step in a run goes",
        [("part", "ms", "share"), *((name, f"{1000 * part:.2f}", f"{part / mean:.1%}") for name, part in parts)],
    )


def _kind(bf16: bool, compiled: bool) -> str:
    return f"{'bf16' if bf16 else 'fp32'}, {'compiled' if compiled else 'eager'}"
