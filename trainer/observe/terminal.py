"""What the terminal shows while a run lasts: the bar, or plain lines."""

import os
import sys
import time
from typing import Any

from tqdm import tqdm

from trainer.observe.totals import Tally, format_time


def say(line: str) -> None:
    """Print a line. A reader that went away (`| head`) or a full disk behind it ends the talking, not the run."""
    try:
        print(line, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Progress:
    """The bar on a terminal; elsewhere a plain line every 10 seconds for a minute, then every 60."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._bar: tqdm[Any] | None = None
        self._started = self._spoke = time.monotonic()

    def start(self, done: int) -> None:
        """Begin to show, with `done` documents finished before."""
        self._started = self._spoke = time.monotonic()
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=self._total,
                initial=done,
                desc="Training",
                ncols=100,
                bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
            )

    def show(self, done: int, tally: Tally, learning_rate: float, seconds: float) -> None:
        """One more document is finished: `done` in all. Those to come take `seconds` each."""
        numbers = {
            "loss": f"{tally.loss.value:.4f}",
            "acc": f"{tally.accuracy.value * 100:.1f}%",
            "tps": f"{tally.tokens_per_second:.1f}",
            "lr": f"{learning_rate:.2e}",
            "eta": format_time((self._total - done) * seconds),
        }
        if self._bar is not None:
            self._bar.set_postfix(numbers, refresh=False)
            self._bar.update(1)
            return
        now = time.monotonic()
        if now - self._spoke >= (10 if now - self._started <= 65 else 60):
            self._spoke = now
            self.say(f"{done:,} of {self._total:,} documents, " + ", ".join(f"{k} {v}" for k, v in numbers.items()))

    def rewind(self, done: int) -> None:
        """The run went back: only `done` documents are finished."""
        if self._bar is not None:
            self._bar.n = done

    def say(self, line: str) -> None:
        """A line above the bar."""
        if self._bar is not None:
            self._bar.clear()
        say(line)
        if self._bar is not None:
            self._bar.refresh()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
            self._bar = None
