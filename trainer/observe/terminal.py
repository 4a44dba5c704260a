"""What the terminal shows while a run lasts: the bar, or plain lines."""

import math
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import zstandard
from tqdm import tqdm

from common.formatting import format_bytes, format_time
from trainer.base.device import describe_device
from trainer.config import ModelShape, TrainingConfig
from trainer.data.sources import DataSource
from trainer.data.tokenizer import Tokenizer
from trainer.learning.schedule import make_scheduler
from trainer.observe.totals import Tally


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


def opening_lines(
    config: TrainingConfig,
    *,
    shape: ModelShape,
    source: DataSource,
    tokenizer: Tokenizer,
    device: torch.device,
    viz: Path,
    documents: int,
    seconds: float,
    needed: int,
) -> list[str]:
    """Data and tokenizer; model and device; time and disk; where to look. A fifth line where the warm-up is too long.

    Args:
        documents: how many are still to be trained on.
        seconds: that they will take, estimated.
        needed: bytes that they will take at most.
    """
    parameters = shape.parameters(tokenizer.vocab_size)
    where = f"{source.name} ({source.note})" if source.note else source.name
    compiled = ", compiled" if config.compile else ""
    advice = ". This GPU has room for more: --model-size base" if device.type == "cuda" and parameters < 5e7 else ""
    lines = [
        f"Data: {where}, revision {source.revision[:12]}; tokenizer {tokenizer.sha256[:12]}, "
        f"{tokenizer.vocab_size:,} pieces",
        f"Model: {config.model_size or shape}, {parameters / 1e6:.1f} M parameters, on {describe_device(device)} in "
        f"{config.dtype}{compiled}{advice}",
        f"This run: {documents:,} documents, about {format_time(seconds)} by a trial pass, "
        f"at most {format_bytes(needed)} on disk",
        f"Watch {viz / 'training_latest.png'}; every document is kept in {viz / 'run.db'}; Ctrl-C saves and stops",
    ]
    if config.warmup_steps > config.num_steps / 2:
        reached = make_scheduler(config.to_dict()).get_learning_rate(config.num_steps - 1)
        lines.append(
            f"The warm-up ({config.warmup_steps:,} steps) is longer than half of this run, which ends at learning rate "
            f"{reached:.1e}: choose --warmup-steps"
        )
    return lines


def closing_lines(
    ending: str,
    *,
    tally: Tally,
    counts: Mapping[str, Any],
    texts: Sequence[str],
    viz: Path,
    checkpoint: Path | None,
    go_on: str | None,
    guessing: float,
) -> list[str]:
    """Five lines, or one where nothing was trained: documents; loss and bits per byte; speed; files; what comes next.

    Args:
        tally: the run's running numbers.
        counts: the state of the `SampleStream`: `held_out` and `skipped`.
        texts: what the documents of `tally.bits_per_byte()` say, as far as they were read.
        go_on: the command that continues the run, if one can.
        guessing: loss of a model that holds every token equally likely. A sixth line where the run ended above it.
    """
    if not tally.documents:
        return [f"{ending}: no document was trained on"]
    skipped = ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts["skipped"].items()))
    plural = "" if tally.documents == 1 else "s"
    first, last, window = tally.first_and_last()
    bits, number = tally.bits_per_byte()
    speed, waited = tally.speed()
    generate = _module("trainer.generate", str(checkpoint), "--prompt", "TEXT")
    files = ("training_latest.png", "metrics_history.json", "text_samples.json", "run.json", "run.db")
    made = ", ".join(name for name in files if (viz / name).is_file())
    worse = f"That is worse than guessing ({guessing:.2f}): a lower --learning-rate or a longer --warmup-steps may help"
    return [
        f"{ending}: {tally.documents:,} document{plural} trained ({tally.tokens:,} tokens), "
        f"{counts['held_out']:,} held out from training, skipped: {skipped or 'none'}",
        f"Loss {first:.4f} → {last:.4f} nats per token (means of the first and the last {window} documents); "
        f"{bits:.3f} bits per byte on the last {number}, where zstd -19 makes {zstd_bits_per_byte(texts):.3f}",
        *([worse] if last > guessing + 0.5 else []),
        f"{speed:,.1f} tokens/s in {format_time(tally.seconds)}, {waited:.1%} of it waiting for documents",
        f"To read its documents: {_module('viz', 'serve', str(viz))}",
        f"Files: in {viz}/ {made}" + (f"; {checkpoint}" if checkpoint else "; no checkpoint"),
        f"To go on: {go_on}; to let it write: {generate}"
        if go_on
        else "To go on: not possible, no checkpoint was written",
    ]


def _module(*words: str) -> str:
    """The command that runs a module of this project, from where the person stands now."""
    project = Path(__file__).resolve().parents[2]
    path = "" if Path.cwd() == project else f"PYTHONPATH={shlex.quote(str(project))} "
    return f"{path}python -m {shlex.join(words)}"


def zstd_bits_per_byte(texts: Sequence[str]) -> float:
    """Bits a byte that zstd at level 19 needs for the texts, together in one frame."""
    joined = "\n".join(texts).encode(errors="replace")
    return 8 * len(zstandard.compress(joined, 19)) / len(joined) if joined else math.nan
