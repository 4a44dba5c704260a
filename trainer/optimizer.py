"""Parameter groups and betas: which update each weight gets."""

from collections.abc import Iterable

import torch


def build_optimizer(parameters: Iterable[torch.Tensor]) -> torch.optim.AdamW:
    """AdamW for a batch of one document, over fp32 weights.

    beta2 = 0.9999 is a half-life of 6,931 steps: with one document in a step, only the average over many steps makes
    the second moment an estimate at all (arXiv 2507.07101). No weight decay. The learning rate is set at each step.
    `fused` walks over the weights once, and takes `grad_scale` and `found_inf` (see `trainer/step.py`).
    """
    return torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.9999), eps=1e-8, weight_decay=0.0, fused=True)
