"""The whole run against the bare step and the `Trainer` of transformers: all as by default, but that it compiles."""

import itertools
import statistics
import tempfile
from pathlib import Path

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

STEPS, FIRST = 250, 50
"""Of a turn, and the first that counts: those before it pay for caches."""


def main(size: str, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder / "corpus.jsonl.zst", 3000)
        numbers = itertools.count()

        def whole() -> float:
            run = folder / f"run{next(numbers)}"
            run.mkdir()
            flags = ["--dataset", str(folder / "corpus.jsonl.zst"), "--model-size", size, "--steps", str(STEPS)]
            run_command(run, *flags, "--compile", "--max-seq-length", str(LENGTH))
            return 1000 * statistics.fmean(seconds_of_run(run, FIRST))

        def transformers(bf16: bool, compiled: bool, steps: int = 60, first: int = 20) -> float:
            with own_process() as process:
                return process.submit(
                    time_transformers, size, steps=steps, first=first, bf16=bf16, compiled=compiled
                ).result()

        step, documents = make_step(size, compiled=True), random_documents(40)
        whole()  # fills the compiler's cache
        kinds = list(itertools.product((False, True), (False, True)))
        theirs = {kind: transformers(*kind, steps=40, first=15) for kind in kinds}
        best = min(theirs, key=lambda kind: theirs[kind])

        times = take_turns(
            {
                "whole": whole,
                "bare": lambda: mean_step(step, documents),
                "best": lambda: transformers(*best),
                "as it ships": lambda: transformers(False, False),
            },
            rounds,
        )
    words = f"{'bf16' if best[0] else 'fp32'}, {'compiled' if best[1] else 'eager'}"
    found = ", ".join(
        f"{'bf16' if bf16 else 'fp32'} {'compiled' if compiled else 'eager'} {theirs[bf16, compiled]:.0f}"
        for bf16, compiled in kinds
    )
    print_table(
        f"`{size}`, documents of {LENGTH} tokens, one a step",
        [
            ("what", "a step", "speed of our whole run ÷ its"),
            ("our whole run: .jsonl.zst, store, charts and generation every 50", in_words(times["whole"]), "1"),
            ("our bare step on ready-made ids", in_words(times["bare"]), f"{ratio(times, 'bare', 'whole'):.2f}"),
            (
                f"`Trainer` of transformers, its best ({words})",
                in_words(times["best"]),
                f"{ratio(times, 'best', 'whole'):.2f}",
            ),
            (
                "the same as it ships (fp32)",
                in_words(times["as it ships"]),
                f"{ratio(times, 'as it ships', 'whole'):.2f}",
            ),
        ],
    )
    print(f"transformers, ms a step, once each: {found}")
