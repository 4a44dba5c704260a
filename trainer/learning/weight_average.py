"""`AveragedWeights`: the mean of the weights over the last part of the run, better than where they happen to stand."""

from collections.abc import Sequence

import torch
from torch import Tensor

INTERVAL = 8
"""Steps between two looks at the weights: neighbours are nearly equal, and each look reads all of them."""
DECAY = 8.0
"""The mean reaches back over about the last tenth of the run: step s of t counts (s/t)^8."""


class AveragedWeights:
    """Polynomial-decay average of fp32 weights (arXiv 1212.1824, section 4).

    At a constant rate, with one document a step, the weights jitter around where they are going: the mean of the last
    ones is what a lower rate would have come to, without having gone slower. Nothing is learned from it.

    Until the first look it is the weights themselves.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self.weights = [weight.detach().clone() for weight in weights]

    @torch.no_grad()
    def follow(self, weights: Sequence[Tensor], steps: int) -> None:
        """After `steps` steps in all the weights stand there. To be told of every step."""
        if steps % INTERVAL == 0 or steps < INTERVAL:
            looks = max(steps // INTERVAL, 1)
            torch._foreach_lerp_(self.weights, [weight.detach() for weight in weights], (DECAY + 1) / (DECAY + looks))

    @torch.no_grad()
    def copy_from(self, weights: Sequence[Tensor]) -> None:
        """Be these weights."""
        for mine, weight in zip(self.weights, weights, strict=True):
            mine.copy_(weight)
