"""`Probes` re-measures a few documents of the run after the model trained on them: how fast are they forgotten?"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from trainer.model.language_model import LanguageModel
from trainer.objectives.next_token import NextToken
from trainer.observe.totals import TimeBudget
from trainer.records import Sample, Visualizer

SHARES = (0.02, 0.1, 0.3, 0.6)
"""Shares of a run's steps after which a document is chosen for re-measurement."""
MOST_TIME = 0.01
"""The most of a run's time that measurements may use."""
FIRST_EXPECTED = 0.25
"""Expected duration of the first measurement, in mean steps."""


class Probes:
    """Measures each chosen document 0, 1, 2, 4, 8 … steps after the step that trained on it.

    It uses the current weights, because their average lags: it would hardly know the document just after its step, and
    still know it long after the weights forgot it. It does not change training: no gradient, no random number.

    A measurement that does not fit into the time budget is skipped. A document is chosen only if two measurements fit.
    """

    def __init__(
        self,
        model: LanguageModel,
        viz: Visualizer,
        num_steps: int,
        *,
        max_seq_length: int,
        is_on: bool = True,
        share_of_time: float = MOST_TIME,
        objective: NextToken | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            model: the model that trains, in its own dtype on its own device.
            max_seq_length: longer documents in a checkpoint are ignored.
            share_of_time: the most of the run's time that all measurements together may use.
        """
        self._model = model
        self._viz = viz
        self._num_steps = num_steps
        self._max_seq_length = max_seq_length
        self._is_on = is_on
        self._objective = objective or NextToken()
        self._budget = TimeBudget(share_of_time, clock)
        self._followed = 0
        """Steps since the budget started."""
        self._warned = False
        self.documents: dict[int, list[int]] = {}
        """Step → (T,) ids of the chosen documents."""

    def start(self) -> None:
        """Start counting the time of the run."""
        self._followed = 0
        self._budget.start()

    def follow(self, sample: Sample, done: int) -> None:
        """Measure what is due after `done` documents, of which `sample` is the last. Call once per step.

        Raises:
            OSError: the record can no longer be written.
        """
        if not self._is_on:
            return
        self._followed += 1
        for step, ids in self.documents.items():
            if _is_due(done - 1 - step):
                if self._has_time(1):
                    self._measure(step, ids, done)
                else:
                    self._skip(done)
        chosen = len(self.documents)
        if chosen < len(SHARES) and done > SHARES[chosen] * self._num_steps and self._has_time(2):
            self.documents[done - 1] = sample.ids
            self._measure(done - 1, sample.ids, done)

    def _measure(self, step: int, ids: Sequence[int], done: int) -> None:
        with self._budget.spend():
            loss, accuracy, token_losses = self._judge(ids)
        self._viz.record_probe(done - 1, step, loss, accuracy, token_losses)

    @torch.no_grad()
    def _judge(self, ids: Sequence[int]) -> tuple[float, float, Any]:
        """Return loss, accuracy and (T-1,) token losses, as in a `StepResult`."""
        inputs, targets = self._objective.inputs_and_targets(ids, len(ids) - 1)
        hidden = self._model.hidden(inputs.unsqueeze(0).to(self._model.device))[0]
        judged = self._objective.judge(self._model.logits(hidden), targets.to(hidden.device))
        is_finite = bool(judged.logits_are_finite)
        accuracy = (judged.token_ranks == 0).float().mean().item() if is_finite else float("nan")
        return judged.loss.item(), accuracy, judged.token_losses.cpu().numpy()

    def _has_time(self, count: int) -> bool:
        """Whether `count` more measurements fit into the time budget."""
        expected = self._budget.expected
        if expected is None:
            expected = FIRST_EXPECTED * self._budget.elapsed / self._followed
        return self._budget.allows(count, expected)

    def _skip(self, done: int) -> None:
        """Record the first skipped measurement. It is not printed: one row of many is missing."""
        if not self._warned:
            self._warned = True
            detail = (
                f"Re-measuring documents may use {self._budget.share:.0%} of the time: some measurements are skipped"
            )
            self._viz.record_event(done, "probe left out", detail)

    def state_dict(self) -> dict[str, Any]:
        return {"documents": [{"step": step, "ids": ids} for step, ids in self.documents.items()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        # A checkpoint may be untrusted: ignore ids that can't be a document of this run.
        self.documents = {
            document["step"]: document["ids"]
            for document in state["documents"][: len(SHARES)]
            if 2 <= len(document["ids"]) <= self._max_seq_length and max(document["ids"]) < self._model.vocab_size
        }


def _is_due(distance: int) -> bool:
    """0, 1, 2, 4, 8 …"""
    return distance >= 0 and distance & (distance - 1) == 0
