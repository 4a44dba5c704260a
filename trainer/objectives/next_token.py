"""Next-token prediction: inputs and targets of a sample, then loss and rank of every token."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = -100
"""Target of a position that predicts nothing."""


class Judgement(NamedTuple):
    """The result of T predictions. A tuple, so that a compiled step can return it."""

    loss: Tensor
    """() float32, nats per token: the mean over the real predictions. Only this has a gradient."""
    token_losses: Tensor
    """(T,) float32, nats; 0 where the target is padding."""
    token_ranks: Tensor
    """(T,) int32: number of tokens with a greater logit than the true one. 0 exactly where argmax is the true token;
    other tokens that share the greatest logit have rank 1. -1 where the target is padding."""
    logits_are_finite: Tensor
    """() bool: all logits are finite, including those at padding."""


class NextToken:
    """Predict each token from those before it: input `ids[:-1]`, target `ids[1:]`, mean cross-entropy."""

    def inputs_and_targets(self, ids: Sequence[int], length: int) -> tuple[Tensor, Tensor]:
        """Return two (length,) int64 tensors on the CPU, padded on the right: inputs with 0, targets with `PADDING`.

        A causal model needs no mask, because a token never attends to those on its right.

        Raises:
            ValueError: the sample is longer than `length`.
        """
        padding = length - (len(ids) - 1)
        if padding < 0:
            raise ValueError(f"{len(ids)} ids make {len(ids) - 1} predictions, more than {length}")
        inputs = torch.tensor([*ids[:-1], *[0] * padding])
        targets = torch.tensor([*ids[1:], *[PADDING] * padding])
        return inputs, targets

    def judge(self, logits: Tensor, targets: Tensor) -> Judgement:
        """Return loss and rank of T predictions.

        Args:
            logits: (T, V), any float dtype; sums are computed in float32.
            targets: (T,) int64, `PADDING` where nothing is predicted. Without any real target, the loss is NaN.
        """
        logits = logits.float()
        token_losses = F.cross_entropy(logits, targets, ignore_index=PADDING, reduction="none")
        real = targets != PADDING
        loss = token_losses.sum() / real.sum()
        with torch.no_grad():
            true_logits = logits.gather(1, targets.clamp(min=0).unsqueeze(1))
            more_likely = (logits > true_logits).sum(1, dtype=torch.int32)
            # Equal logits are common in bf16, also at the top: without a tie-break, two tokens would count as correct.
            token_ranks = torch.where(logits.argmax(1) == targets, 0, more_likely.clamp(min=1))
            token_ranks = torch.where(real, token_ranks, -1)
            # A sum propagates non-finite values: one pass, without a mask of the size of the logits.
            logits_are_finite = torch.isfinite(logits.sum())
        return Judgement(loss, token_losses.detach(), token_ranks, logits_are_finite)
