"""`AveragedWeights`: the average of the weights over the last part of a run, for evaluation and generation."""

from collections.abc import Sequence

import torch
from torch import Tensor

INTERVAL = 8
"""Steps between two updates of the average: consecutive weights are nearly equal, and each update reads all of them."""
DECAY = 8.0
"""The average covers about the last tenth of the run: step s of t has weight (s/t)^8."""


class AveragedWeights:
    """Polynomial-decay average of fp32 weights (arXiv 1212.1824, section 4).

    At a constant learning rate and one document per step, the weights jitter around their trend. The average has the
    loss of a lower learning rate without slower learning. It does not influence training.

    Before the first update, it equals the weights.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self.weights = [weight.detach().clone() for weight in weights]

    @torch.no_grad()
    def follow(self, weights: Sequence[Tensor], steps: int) -> None:
        """Update the average. Call once per step, with the number of steps taken so far."""
        if steps % INTERVAL == 0 or steps < INTERVAL:
            updates = max(steps // INTERVAL, 1)
            torch._foreach_lerp_(self.weights, [weight.detach() for weight in weights], (DECAY + 1) / (DECAY + updates))

    @torch.no_grad()
    def copy_from(self, weights: Sequence[Tensor]) -> None:
        """Copy these weights."""
        for average, weight in zip(self.weights, weights, strict=True):
            average.copy_(weight)
