"""Time of `--test`, from the return key to the last file."""

import sys
import tempfile
import time
from pathlib import Path

from benchmarks.contenders import run_command, seconds_of_run
from benchmarks.timing import in_words, print_table


def main(rounds: int) -> None:
    whole, steps = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            since = time.perf_counter()
            run_command(Path(name), "--test")
            whole.append(time.perf_counter() - since)
            steps.append(sum(seconds_of_run(Path(name), 0)))
    rest = [one - other for one, other in zip(whole, steps, strict=True)]
    print_table(
        f"`python train_slimpajama.py --test`, Python {sys.version.split()[0]}",
        [
            ("what", "time"),
            ("from the return key to the last file", in_words(whole, "s")),
            ("of which the 100 steps", in_words(steps, "s")),
            ("of which everything else", in_words(rest, "s")),
        ],
    )
