"""`Evaluator`: the loss on documents that are never trained on."""

import time
from collections.abc import Mapping, Sequence

import torch

from trainer.model import LanguageModel
from trainer.objective import NextToken
from trainer.records import Evaluation, Sample


class Evaluator:
    """Judges a model on fixed splits. Looking only: no gradient, no random number, never the training graph."""

    def __init__(
        self,
        model: LanguageModel,
        splits: Mapping[str, Sequence[Sample]],
        *,
        objective: NextToken | None = None,
    ) -> None:
        """
        Args:
            model: read as it is at each evaluation, in its own dtype and on its own device.
            splits: name → the samples of that split, kept in memory.
        """
        self._model = model
        self._splits = splits
        self._objective = objective or NextToken()

    @property
    def splits(self) -> list[str]:
        return list(self._splits)

    def evaluate(self, split: str = "validation") -> float:
        """Mean loss of a split, nats per token: every prediction counts the same, whichever document it is of.

        Raises:
            KeyError: no such split.
        """
        return self.measure(split).loss

    @torch.no_grad()
    def measure(self, split: str = "validation") -> Evaluation:
        """`evaluate`, with what it was counted over."""
        since = time.monotonic()
        nats, right, tokens, predicted_bytes = 0.0, 0, 0, 0
        for sample in self._splits[split]:
            count = len(sample.ids) - 1
            inputs, targets = self._objective.inputs_and_targets(sample.ids, count)
            logits = self._model(inputs.to(self._model.device).unsqueeze(0))[0]
            judged = self._objective.judge(logits, targets.to(self._model.device))
            nats += judged.token_losses.double().sum().item()
            right += int((judged.token_ranks == 0).sum())
            tokens += count
            predicted_bytes += sample.predicted_bytes
        return Evaluation(
            split=split,
            loss=nats / tokens,
            accuracy=right / tokens,
            tokens=tokens,
            bytes=predicted_bytes,
            seconds=time.monotonic() - since,
        )
