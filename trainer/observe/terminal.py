"""What a run prints: the opening lines, a progress bar or plain lines, and the closing lines."""

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
from common.run_marker import PROJECT, is_installed
from trainer.base.device import describe_device
from trainer.config import ModelShape, TrainingConfig
from trainer.data.sources import DataSource
from trainer.data.tokenizer import Tokenizer
from trainer.learning.schedule import make_scheduler
from trainer.observe.totals import Tally


def say(line: str) -> None:
    """Print a line. If standard output can't be written (`| head`, a full disk), printing stops, not the run."""
    try:
        print(line, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Progress:
    """A progress bar on a terminal; otherwise a plain line every 10 seconds for a minute, then every 60 seconds."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._bar: tqdm[Any] | None = None
        self._started = self._printed = time.monotonic()

    def start(self, done: int) -> None:
        """Start, with `done` documents finished before."""
        self._started = self._printed = time.monotonic()
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=self._total,
                initial=done,
                desc="Training",
                ncols=100,
                bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
            )

    def show(self, done: int, tally: Tally, learning_rate: float, seconds: float) -> None:
        """Show that one more document is finished, `done` in total. The remaining ones take about `seconds` each."""
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
        if now - self._printed >= (10 if now - self._started <= 65 else 60):
            self._printed = now
            self.say(f"{done:,} of {self._total:,} documents, " + ", ".join(f"{k} {v}" for k, v in numbers.items()))

    def rewind(self, done: int) -> None:
        """Go back to `done` finished documents."""
        if self._bar is not None:
            self._bar.n = done

    def say(self, line: str) -> None:
        """Print a line above the bar."""
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
    """Return the opening lines: data, model, plan, files; and a warning if the warm-up is too long.

    Args:
        documents: how many are still to be trained on.
        seconds: estimated time for all of them.
        needed: the most bytes that the run writes.
    """
    parameters = shape.parameters(tokenizer.vocab_size)
    where = f"{source.name} ({source.note})" if source.note else source.name
    compiled = ", compiled" if config.compile else ""
    has_room = device.type == "cuda" and parameters < 5e7
    advice = ". This GPU has memory for a larger model: --model-size base" if has_room else ""
    lines = [
        f"Data: {where}, revision {source.revision[:12]}; tokenizer {tokenizer.sha256[:12]}, "
        f"vocabulary of {tokenizer.vocab_size:,}",
        f"Model: {config.model_size or shape}, {parameters / 1e6:.1f} M parameters, on {describe_device(device)}, "
        f"{config.dtype}{compiled}{advice}",
        f"Plan: {documents:,} documents, about {format_time(seconds)}, at most {format_bytes(needed)} on disk",
        f"Chart: {viz / 'training_latest.png'}. Record of every document: {viz / 'run.db'}. "
        "Press Ctrl-C to save and stop",
    ]
    if config.warmup_steps > config.num_steps / 2:
        reached = make_scheduler(config.to_dict()).get_learning_rate(config.num_steps - 1)
        lines.append(
            f"The warm-up ({config.warmup_steps:,} steps) is longer than half of this run, which ends at a learning "
            f"rate of {reached:.1e}. Consider a lower --warmup-steps"
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
    resume_command: str | None,
    uniform_loss: float,
) -> list[str]:
    """Return the closing lines: documents, loss, speed, how to read them, files, how to resume and generate.

    Args:
        ending: how the run ended.
        tally: the running totals of the run.
        counts: the state of the `SampleStream`: `held_out` and `skipped`.
        texts: the documents of `tally.bits_per_byte()`, as far as they were read.
        resume_command: the command that resumes the run; None if it can't be resumed.
        uniform_loss: loss of a uniform guess, nats per token. A run that ends above it gets a line of advice.
    """
    if not tally.documents:
        return [f"{ending}: trained on no documents"]
    skipped = sum(counts["skipped"].values())
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts["skipped"].items()))
    plural = "" if tally.documents == 1 else "s"
    first, last, window = tally.first_and_last()
    bits, number = tally.bits_per_byte()
    speed, waited = tally.speed()
    generate = _module("trainer.generate", str(checkpoint), "--prompt", "TEXT")
    files = ("training_latest.png", "metrics_history.json", "text_samples.json", "run.json", "run.db")
    made = ", ".join(name for name in files if (viz / name).is_file())
    worse = (
        f"The final loss is above that of a uniform guess ({uniform_loss:.2f}): "
        "try a lower --learning-rate or a longer --warmup-steps"
    )
    return [
        f"{ending}: {tally.documents:,} document{plural} trained ({tally.tokens:,} tokens), "
        f"held out {counts['held_out']:,}, skipped {skipped:,}" + (f" ({reasons})" if reasons else ""),
        f"Loss {first:.4f} → {last:.4f} nats per token (means of the first and the last {window} documents); "
        f"last {number} documents: {bits:.3f} bits per byte (zstd -19: {zstd_bits_per_byte(texts):.3f})",
        *([worse] if last > uniform_loss + 0.5 else []),
        f"Speed: {speed:,.1f} tokens/s for {format_time(tally.seconds)}, {waited:.1%} of it waiting for documents",
        f"Read the documents: {_module('viz', 'serve', str(viz))}",
        f"Files: {viz}/ ({made}), {checkpoint or 'no checkpoint'}",
        f"Resume: {resume_command}" if resume_command else "Resume: not possible, because no checkpoint was saved",
        *([f"Generate: {generate}"] if checkpoint else []),
    ]


def _module(*words: str) -> str:
    """Return the command that runs a module of this project from the current folder."""
    path = "" if is_installed() or Path.cwd() == PROJECT else f"PYTHONPATH={shlex.quote(str(PROJECT))} "
    return f"{path}python -m {shlex.join(words)}"


def zstd_bits_per_byte(texts: Sequence[str]) -> float:
    """Return the bits per byte of the texts, compressed together by zstd at level 19."""
    joined = "\n".join(texts).encode(errors="replace")
    return 8 * len(zstandard.compress(joined, 19)) / len(joined) if joined else math.nan
