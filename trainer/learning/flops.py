"""The arithmetic of a training step, measured in what this machine can do."""

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from trainer.config import ModelShape

SECONDS = 0.003
"""That a product is repeated for, three times."""
SLOW = 0.1
"""A product that takes longer is made twice."""
LONGEST = 256
"""Rows of a product that is timed: more are no faster, and take a long document's time at each start."""
LARGE = 4096


def measure_flops(
    shape: ModelShape, vocab_size: int, length: int, *, dtype: torch.dtype, device: torch.device
) -> dict[str, float]:
    """`per_token` and `per_token_squared` of a step, and the `peak_per_second` of its matrix products, measured now."""
    per_token, per_token_squared = flops_per_token(shape, vocab_size)
    peak = peak_flops(shape, vocab_size, length, dtype=dtype, device=device)
    return {"per_token": per_token, "per_token_squared": per_token_squared, "peak_per_second": peak}


def flops_per_token(shape: ModelShape, vocab_size: int) -> tuple[int, int]:
    """Operations of a training step as two factors: T predictions take first · T + second · T².

    Forward and backward, multiplications and additions, 6 for each weight, and those of attention (arXiv 2204.02311,
    appendix B): what has to be computed, whatever a program computes besides.
    """
    return 6 * shape.parameters(vocab_size), 12 * shape.layers * shape.heads * shape.head_dim


def peak_flops(shape: ModelShape, vocab_size: int, length: int, *, dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of the matrix products that a step on `length` predictions consists of, measured now.

    On a CPU each is made alone and again and again, forward and for both gradients, and counts by its share of the
    step. Elsewhere such products end before Python has asked for the next, so it is one large product that is timed.
    The best of three: what the machine can do, not what others leave of it.
    """
    rows = min(length, LONGEST)
    if device.type != "cpu":
        rows, matrices = LARGE, iter([(LARGE, LARGE, 1)])
    else:
        matrices = _matrices(shape, vocab_size)
    operations = seconds = 0.0
    for outputs, inputs, count in matrices:
        weight, given, gradient = (
            torch.ones(size, dtype=dtype, device=device)
            for size in ((outputs, inputs), (rows, inputs), (rows, outputs))
        )
        for left, right in ((given, weight.T), (gradient, weight), (gradient.T, given)):
            operations += count * 2.0 * rows * outputs * inputs
            seconds += count * _seconds(left, right)
    return operations / seconds


def _matrices(shape: ModelShape, vocab_size: int) -> Iterator[tuple[int, int, int]]:
    """Outputs, inputs, how many there are."""
    inner, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield inner, shape.width, shape.layers
    yield keys, shape.width, 2 * shape.layers
    yield shape.width, inner, shape.layers
    yield shape.hidden, shape.width, 2 * shape.layers
    yield shape.width, shape.hidden, shape.layers
    yield vocab_size, shape.width, 1


def _seconds(left: Tensor, right: Tensor) -> float:
    """Of one product, the best of three; of one that takes long, of the second."""
    first = _repeat(left, right, 1)  # pays for what is done once
    once = _repeat(left, right, 1)
    if first > SLOW:
        return once
    count = max(1, round(SECONDS / max(once, 1e-7)))
    return min(_repeat(left, right, count) for _ in range(3))


def _repeat(left: Tensor, right: Tensor, count: int) -> float:
    """Seconds of one of `count` products in a row."""
    since = time.perf_counter()
    for _ in range(count):
        left @ right
    if left.device.type != "cpu":
        torch.accelerator.synchronize(left.device)
    return (time.perf_counter() - since) / count
