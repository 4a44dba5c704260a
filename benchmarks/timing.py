"""Time contenders in turns; report medians and their spread."""

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence

import torch

from trainer.base.device import choose_device, describe_cpu, describe_device

Times = Mapping[str, Sequence[float]]
"""Contender → the time of each of its turns, all in one unit."""


def take_turns(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure in the order A B C A B C …, so that a slow phase of the machine affects all contenders.

    Each contender returns its own measurement.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, measure in contenders.items():
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
            times[name].append(measure())
    return times


def ratio(times: Times, above: str, below: str) -> float:
    """Return the median over the rounds of `above`'s time ÷ `below`'s time in the same round."""
    return statistics.median(one / other for one, other in zip(times[above], times[below], strict=True))


def in_words(values: Sequence[float], unit: str = "ms") -> str:
    """Format the median ± half the interquartile range in percent."""
    median = statistics.median(values)
    if len(values) < 3:
        return f"{median:.4g} {unit}"
    low, _, high = statistics.quantiles(values, n=4)
    return f"{median:.4g} {unit} ± {100 * (high - low) / 2 / median:.0f} %"


def print_table(title: str, rows: Sequence[Sequence[str]], *, device: torch.device | None = None) -> None:
    """Print a Markdown table (the first row is the header), preceded by what was measured on which machine."""
    device = device or choose_device("auto")
    print(f"{title}: {describe_device(device)}, {describe_cpu()}, torch {torch.__version__}\n")
    head, *body = rows
    for line in (head, ["---"] * len(head), *body):
        print(f"| {' | '.join(line)} |")
    print(flush=True)
