import time

import torch

from trainer.config import MODEL_SIZES
from trainer.model import LanguageModel
from trainer.peak import flops_per_token, peak_flops

TINY = MODEL_SIZES["tiny"]


def test_operations_are_those_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model, length = LanguageModel(TINY, 300).bfloat16(), 40  # whose attention is written out in products
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, length, dtype=torch.long)).sum().backward()
    first, second = flops_per_token(TINY, 300)
    norms = sum(weight.numel() for weight in model.parameters() if weight.dim() == 1)
    products = (first - 6 * norms) * length + second * length**2
    assert counter.get_total_flops() == products


def test_the_peak_is_what_products_of_these_shapes_reach() -> None:
    found = peak_flops(TINY, 300, 64, dtype=torch.float32, device=torch.device("cpu"))
    left, right = torch.randn(64, 64), torch.randn(64, 192)
    left @ right
    since = time.perf_counter()
    for _ in range(100):
        left @ right
    alone = 100 * 2 * 64 * 64 * 192 / (time.perf_counter() - since)
    assert alone / 20 < found < alone * 20  # orders of magnitude: other things run on this machine
