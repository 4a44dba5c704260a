"""The floating-point operations of a training step, and the speed of matrix products on this machine."""

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from trainer.config import ModelShape

SECONDS = 0.003
"""How long a product is repeated per measurement; the best of three measurements counts."""
SLOW = 0.1
"""Seconds. A product that takes longer is timed only once, after one warm-up."""
LONGEST = 256
"""Rows of a timed product. More rows are no faster, and for long documents they would slow down every start."""
LARGE = 4096


def measure_flops(
    shape: ModelShape, vocab_size: int, length: int, *, dtype: torch.dtype, device: torch.device
) -> dict[str, float]:
    """Return `per_token` and `per_token_squared` of a step, and the measured `peak_per_second` of this machine."""
    per_token, per_token_squared = flops_per_token(shape, vocab_size)
    peak = peak_flops(shape, vocab_size, length, dtype=dtype, device=device)
    return {"per_token": per_token, "per_token_squared": per_token_squared, "peak_per_second": peak}


def flops_per_token(shape: ModelShape, vocab_size: int) -> tuple[int, int]:
    """Return two factors (a, b): a training step on T predictions takes a · T + b · T² operations.

    Counts the multiplications and additions of the forward and backward passes: 6 per weight, plus attention (arXiv
    2204.02311, appendix B). Extra work of the implementation does not count.
    """
    return 6 * shape.parameters(vocab_size), 12 * shape.layers * shape.heads * shape.head_dim


def _repeat(left: Tensor, right: Tensor, count: int) -> float:
    """Compute a product `count` times; return the seconds of one."""
    since = time.perf_counter()
    for _ in range(count):
        left @ right
    if left.device.type != "cpu":
        torch.accelerator.synchronize(left.device)
    return (time.perf_counter() - since) / count


def seconds_per_product(left: Tensor, right: Tensor) -> float:
    """Return the seconds of one product: the best of three measurements, or the second run of a slow product."""
    first = _repeat(left, right, 1)  # includes one-time setup
    once = _repeat(left, right, 1)
    if first > SLOW:
        return once
    count = max(1, round(SECONDS / max(once, 1e-7)))
    return min(_repeat(left, right, count) for _ in range(3))


def peak_flops(
    shape: ModelShape,
    vocab_size: int,
    length: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
    timer: Callable[[Tensor, Tensor], float] = seconds_per_product,
) -> float:
    """Measure how many operations per second this machine reaches in the matrix products of a step.

    On a CPU, each product of a step on `length` predictions is timed separately (forward and both gradients) and
    weighted by its share of the step. On other devices such products finish before Python can launch the next one, so
    one large product is timed instead. The best of three measurements counts, because other load must not lower it.

    Args:
        timer: returns the seconds of one product.
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
            seconds += count * timer(left, right)
    return operations / seconds


def _matrices(shape: ModelShape, vocab_size: int) -> Iterator[tuple[int, int, int]]:
    """Yield (outputs, inputs, count) for each kind of matrix in the model."""
    inner, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield inner, shape.width, shape.layers
    yield keys, shape.width, 2 * shape.layers
    yield shape.width, inner, shape.layers
    yield shape.hidden, shape.width, 2 * shape.layers
    yield shape.width, shape.hidden, shape.layers
    yield vocab_size, shape.width, 1
