"""How contenders are timed: in turns, with medians, and how far they scatter."""

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence

import torch

from trainer.base.device import choose_device, describe_cpu, describe_device

Times = Mapping[str, Sequence[float]]
"""Contender → what each of its turns took, in one unit."""


def take_turns(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """A B C A B C …: what slows the machine for a while slows all of them. Each call returns what it measured."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, measure in contenders.items():
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
            times[name].append(measure())
    return times


def ratio(times: Times, above: str, below: str) -> float:
    """The median over the rounds of one contender's time over that of the other in the same round."""
    return statistics.median(one / other for one, other in zip(times[above], times[below], strict=True))


def in_words(values: Sequence[float], unit: str = "ms") -> str:
    """The median, and half the distance between the quartiles as what it scattered by."""
    median = statistics.median(values)
    if len(values) < 3:
        return f"{median:.4g} {unit}"
    low, _, high = statistics.quantiles(values, n=4)
    return f"{median:.4g} {unit} ± {100 * (high - low) / 2 / median:.0f} %"


def print_table(title: str, rows: Sequence[Sequence[str]], *, device: torch.device | None = None) -> None:
    """A Markdown table: the first row is its head. Above it what was measured, and on what."""
    device = device or choose_device("auto")
    print(f"{title}: {describe_device(device)}, {describe_cpu()}, torch {torch.__version__}\n")
    head, *body = rows
    for line in (head, ["---"] * len(head), *body):
        print(f"| {' | '.join(line)} |")
    print(flush=True)
