"""`Probes`: a few documents of the run, measured again and again after they were learned from: what stays of them."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from trainer.model.language_model import LanguageModel
from trainer.objectives.next_token import NextToken
from trainer.observe.totals import TimeBudget
from trainer.records import Sample, Visualizer

SHARES = (0.02, 0.1, 0.3, 0.6)
"""Of a run's steps, after which a document is taken that is measured from then on."""
MOST_TIME = 0.01
"""Of a run's time, that measuring may take."""
FIRST_EXPECTED = 0.25
"""Of a mean step: what a measurement is taken to last before there was one."""


class Probes:
    """Measures each of its documents 0, 1, 2, 4, 8 … steps after the one that learned from it.

    With the weights as they train, because their average would know the document long after they forgot it, and would
    hardly know it just after. Looking only: no gradient, no random number, never the training graph.

    A measurement for which the time has not been earned is left out, and a document is taken only where there is time
    for two.
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
            model: the one that trains, in its own dtype on its own device.
            max_seq_length: what a checkpoint says of longer documents is not believed.
            share_of_time: of the run's time, the most that all measurements together may use.
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
        self._is_told = False
        self.documents: dict[int, list[int]] = {}
        """Step -> its (T,) ids, of the documents that are measured."""

    def start(self) -> None:
        """The run's time counts from here."""
        self._followed = 0
        self._budget.start()

    def follow(self, sample: Sample, done: int) -> None:
        """After `done` documents, of which `sample` is the last: measure what is due. To be told of every step.

        Raises:
            OSError: the record can't be written any more.
        """
        if not self._is_on:
            return
        self._followed += 1
        for step, ids in self.documents.items():
            if _is_moment(done - 1 - step):
                if self._has_time(1):
                    self._measure(step, ids, done)
                else:
                    self._leave_out(done)
        begun = len(self.documents)
        if begun < len(SHARES) and done > SHARES[begun] * self._num_steps and self._has_time(2):
            self.documents[done - 1] = sample.ids
            self._measure(done - 1, sample.ids, done)

    def _measure(self, step: int, ids: Sequence[int], done: int) -> None:
        with self._budget.spend():
            loss, accuracy, token_losses = self._judge(ids)
        self._viz.record_probe(done - 1, step, loss, accuracy, token_losses)

    @torch.no_grad()
    def _judge(self, ids: Sequence[int]) -> tuple[float, float, Any]:
        """Loss, accuracy and (T-1,) losses of the tokens, as in a `StepResult`."""
        inputs, targets = self._objective.inputs_and_targets(ids, len(ids) - 1)
        hidden = self._model.hidden(inputs.unsqueeze(0).to(self._model.device))[0]
        judged = self._objective.judge(self._model.logits(hidden), targets.to(hidden.device))
        is_finite = bool(judged.logits_are_finite)
        accuracy = (judged.token_ranks == 0).float().mean().item() if is_finite else float("nan")
        return judged.loss.item(), accuracy, judged.token_losses.cpu().numpy()

    def _has_time(self, count: int) -> bool:
        """Whether `count` more of them would stay within what they may take of the time until now."""
        expected = self._budget.expected
        if expected is None:
            expected = FIRST_EXPECTED * self._budget.elapsed / self._followed
        return self._budget.allows(count, expected)

    def _leave_out(self, done: int) -> None:
        """An event the first time. Not said: a row that is missing among many is no news."""
        if not self._is_told:
            self._is_told = True
            detail = f"All measurements of earlier documents together may take {self._budget.share:.0%} of the time"
            self._viz.record_event(done, "probe left out", detail)

    def state_dict(self) -> dict[str, Any]:
        return {"documents": [{"step": step, "ids": ids} for step, ids in self.documents.items()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        # A checkpoint may come from anywhere: what can't be a document of this run is not measured.
        self.documents = {
            document["step"]: document["ids"]
            for document in state["documents"][: len(SHARES)]
            if 2 <= len(document["ids"]) <= self._max_seq_length and max(document["ids"]) < self._model.vocab_size
        }


def _is_moment(distance: int) -> bool:
    """0, 1, 2, 4, 8 …"""
    return distance >= 0 and distance & (distance - 1) == 0
