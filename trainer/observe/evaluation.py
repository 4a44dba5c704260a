"""Evaluation on held-out documents: `Evaluator` measures a model, `Evaluations` decides when a run is measured."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import torch

from common.formatting import format_time
from trainer.errors import UserError
from trainer.model.language_model import LanguageModel
from trainer.objectives.next_token import NextToken
from trainer.observe.recorder import Recorder
from trainer.observe.totals import TimeBudget
from trainer.records import Evaluation, Sample

BATCH = 8
"""Documents in one forward pass."""


class Evaluator:
    """Measures a model on fixed splits without changing training: no gradient and no random number is used."""

    def __init__(
        self,
        model: Callable[[], LanguageModel],
        splits: Mapping[str, Iterable[Sample]],
        *,
        objective: NextToken | None = None,
        sorted_at_once: int = 1024,
    ) -> None:
        """
        Args:
            model: returns the model to measure; called at each evaluation. It runs in its own dtype, on its own device.
            splits: name → samples of that split: a list, or an iterable that can be read once.
            sorted_at_once: number of samples that are held in memory and sorted by length at a time.
        """
        self._model = model
        self._splits = splits
        self._objective = objective or NextToken()
        self._sorted_at_once = sorted_at_once

    @property
    def splits(self) -> list[str]:
        return list(self._splits)

    def evaluate(self, split: str = "validation") -> float:
        """Return the mean loss of a split, nats per token. Every prediction has the same weight.

        Raises:
            KeyError: there is no such split.
            UserError: the split has no documents.
        """
        return self.measure(split)[0].loss

    def measure(self, split: str = "validation") -> list[Evaluation]:
        """Return the `Evaluation` of the whole split, then of each of its sources, sorted by name."""
        since = time.monotonic()
        sources: dict[str, _Sums] = {}
        model = self._model()
        for batch in _batches(self._splits[split], self._sorted_at_once):
            for sample, counted in zip(batch, self._judge(model, batch), strict=True):
                sources.setdefault(sample.document.source, _Sums()).add(counted)
        if not sources:
            raise UserError(f"{split}: nothing to predict")
        whole = _Sums()
        for counted in sources.values():
            whole.add(counted)
        seconds = time.monotonic() - since
        return [sums.evaluation(split, name, seconds) for name, sums in [("", whole), *sorted(sources.items())]]

    def trial_seconds(self) -> float:
        """Estimate the seconds that an evaluation of all splits takes. The splits must be lists.

        It reads nine documents of each split, which takes no longer than nine training steps.
        """
        seconds = 0.0
        for samples in self._splits.values():
            batches = list(_batches(samples, self._sorted_at_once))
            longest = batches[0]
            self._judge(self._model(), longest[:1])  # pays the one-time costs
            since = time.monotonic()
            self._judge(self._model(), longest)
            seconds += (time.monotonic() - since) * sum(map(_padded_size, batches)) / _padded_size(longest)
        return seconds

    @torch.no_grad()
    def _judge(self, model: LanguageModel, batch: list[Sample]) -> list["_Sums"]:
        """Return the sums of each sample, from one forward pass. The longest sample comes first."""
        device, length = model.device, len(batch[0].ids) - 1
        pairs = [self._objective.inputs_and_targets(sample.ids, length) for sample in batch]
        hidden = model.hidden(torch.stack([inputs for inputs, _ in pairs]).to(device))
        counted = []
        for sample, row, (_, targets) in zip(batch, hidden, pairs, strict=True):
            count = len(sample.ids) - 1
            # One document's logits at a time: with a large vocabulary, those of a batch would need more memory than a
            # training step.
            judged = self._objective.judge(model.logits(row[:count]), targets[:count].to(device))
            nats = judged.token_losses.cpu().double().sum().item()  # not every device has float64
            counted.append(_Sums(nats, int((judged.token_ranks == 0).sum()), count, sample.predicted_bytes, 1))
        return counted


@dataclass
class _Sums:
    """Sums and counts (never means), so that samples and sources can be added."""

    nats: float = 0.0
    right: int = 0
    tokens: int = 0
    bytes: int = 0
    documents: int = 0

    def add(self, other: "_Sums") -> None:
        self.nats += other.nats
        self.right += other.right
        self.tokens += other.tokens
        self.bytes += other.bytes
        self.documents += other.documents

    def evaluation(self, split: str, source: str, seconds: float) -> Evaluation:
        return Evaluation(
            split=split,
            source=source,
            loss=self.nats / self.tokens,
            accuracy=self.right / self.tokens,
            bits_per_byte=self.nats / math.log(2) / self.bytes if self.bytes else math.nan,
            documents=self.documents,
            tokens=self.tokens,
            bytes=self.bytes,
            seconds=seconds,
        )


def _batches(samples: Iterable[Sample], sorted_at_once: int) -> Iterator[list[Sample]]:
    """Yield batches of samples of similar length, which need little padding; the longest sample comes first."""
    stream = iter(samples)
    while chunk := sorted(islice(stream, sorted_at_once), key=lambda sample: len(sample.ids), reverse=True):
        for first in range(0, len(chunk), BATCH):
            yield chunk[first : first + BATCH]


def _padded_size(batch: list[Sample]) -> int:
    return len(batch) * (len(batch[0].ids) - 1)


@dataclass(frozen=True)
class AutomaticEvaluation:
    """When a run is evaluated if `--evaluation-interval` is not set."""

    interval: int = 500
    """Documents between two evaluations."""
    shortest_run: int = 1000
    """Documents. A shorter run is not evaluated."""
    share_of_time: float = 0.02
    """Of the run's time, the most that all evaluations together may use."""
    patience: float = 30.0
    """Seconds that the start of a run waits for the held-out documents."""


AUTOMATIC_EVALUATION = AutomaticEvaluation()


def evaluation_interval(
    requested: int | None, num_steps: int, automatic: AutomaticEvaluation = AUTOMATIC_EVALUATION
) -> int:
    """Documents between two evaluations; 0: never. `requested` is `--evaluation-interval`, None if it is not set."""
    if requested is not None:
        return requested
    return automatic.interval if num_steps >= automatic.shortest_run else 0


class Evaluations:
    """Evaluates a run at each interval and at its end, and passes the results to the recorder.

    Automatic evaluations stay within their share of the time: one is skipped if it, and the one at the end, do not fit
    into the budget yet. Evaluations that the user requested always run; if they exceed that share, a line reports it.
    """

    def __init__(
        self,
        evaluator: Evaluator | None,
        recorder: Recorder,
        requested: int | None,
        num_steps: int,
        *,
        automatic: AutomaticEvaluation = AUTOMATIC_EVALUATION,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            evaluator: None: no evaluation is ever due.
            requested: as in `evaluation_interval`.
        """
        self._evaluator = evaluator
        self._recorder = recorder
        self._is_automatic = requested is None
        self._interval = evaluation_interval(requested, num_steps, automatic) if evaluator is not None else 0
        self._num_steps = num_steps
        self._budget = TimeBudget(automatic.share_of_time, clock)
        self._warned = False
        self.evaluated_at = 0
        """Number of documents after which no evaluation is needed: it was made, or the run resumes there."""

    def start(self) -> None:
        """Start counting the time of the run."""
        self._budget.start()

    def are_due(self, done: int) -> bool:
        """Whether an evaluation is due after `done` documents. The one at the end of a run is not included."""
        return bool(self._interval) and done % self._interval == 0 and done < self._num_steps

    def make(self, done: int, *, is_last: bool = False) -> None:
        """Evaluate each split after `done` documents, unless that was done already or exceeds the time budget."""
        if self._evaluator is None or not self._interval or done == self.evaluated_at:
            return
        if self._is_automatic and not self._has_time(self._evaluator, 1 if is_last else 2):
            self._skip(done)
            return
        with self._budget.spend():
            for split in self._evaluator.splits:
                self._recorder.record_evaluation(self._evaluator.measure(split), done=done)
        self.evaluated_at = done
        share = self._budget.share_spent
        if share > self._budget.share and not self._is_automatic and not self._warned:
            self._warned = True
            each = format_time(self._budget.expected or 0.0)
            self._recorder.note(
                done,
                "evaluation cost",
                f"Evaluations have used {share:.1%} of the time so far; the last one took {each}",
            )

    def _has_time(self, evaluator: Evaluator, count: int) -> bool:
        """Whether `count` more evaluations fit into the time budget."""
        if self._budget.expected is None:
            with self._budget.spend():
                seconds = evaluator.trial_seconds()
            self._budget.expected = seconds
        return self._budget.allows(count, self._budget.expected)

    def _skip(self, done: int) -> None:
        """Record a skipped evaluation; print the first one."""
        seconds = format_time(self._budget.expected or 0.0)
        detail = (
            f"Skipped the evaluation after {done:,} documents: it takes about {seconds}, and all evaluations together "
            f"may use {self._budget.share:.0%} of the time. To run each one: --evaluation-interval {self._interval}"
        )
        if self._warned:
            self._recorder.viz.record_event(done, "evaluation left out", detail)
        else:
            self._warned = True
            self._recorder.note(done, "evaluation left out", detail)
