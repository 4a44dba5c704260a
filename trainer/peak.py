"""How much arithmetic a document takes, and how much of it this machine can do in a second."""

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from trainer.config import ModelShape

SECONDS = 0.02
"""That each product is repeated for."""


def flops_per_token(shape: ModelShape, vocab_size: int) -> tuple[int, int]:
    """Operations of a training step as two factors: T predictions take first · T + second · T².

    Forward and backward, multiplications and additions, 6 for each weight, and those of attention (arXiv 2204.02311,
    appendix B): what has to be computed, whatever a program computes besides.
    """
    return 6 * shape.parameters(vocab_size), 12 * shape.layers * shape.heads * shape.head_dim


def peak_flops(shape: ModelShape, vocab_size: int, length: int, *, dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of the matrix products that a step on `length` predictions consists of, measured now.

    Each is made alone and again and again, forward and for both gradients, and counts by its share of the step. The
    best of three: what the machine can do, not what others leave of it.
    """
    operations = seconds = 0.0
    for rows, columns, count in _matrices(shape, vocab_size):
        weight = torch.randn(rows, columns, device=device).to(dtype)
        inputs = torch.randn(length, columns, device=device).to(dtype)
        outputs = torch.randn(length, rows, device=device).to(dtype)
        for left, right in ((inputs, weight.T), (outputs, weight), (outputs.T, inputs)):
            operations += count * 2.0 * length * rows * columns
            seconds += count * min(_seconds(left, right) for _ in range(3))
    return operations / seconds


def _matrices(shape: ModelShape, vocab_size: int) -> Iterator[tuple[int, int, int]]:
    """Rows, columns, how many there are."""
    inner, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield inner, shape.width, shape.layers
    yield keys, shape.width, 2 * shape.layers
    yield shape.width, inner, shape.layers
    yield shape.hidden, shape.width, 2 * shape.layers
    yield shape.width, shape.hidden, shape.layers
    yield vocab_size, shape.width, 1


def _seconds(left: Tensor, right: Tensor) -> float:
    """Of one product, from as many as take `SECONDS / 3`."""

    def wait() -> None:
        if left.device.type == "cuda":
            torch.cuda.synchronize(left.device)

    left @ right  # pays for what is done once
    count, end = 0, 0.0
    wait()
    since = time.perf_counter()
    while end - since < SECONDS / 3:
        left @ right
        count += 1
        if count % 8 == 0:
            wait()
        end = time.perf_counter()
    wait()
    return (time.perf_counter() - since) / count
