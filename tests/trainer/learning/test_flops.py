import pytest
import torch
from torch import Tensor

from trainer.config import MODEL_SIZES
from trainer.learning.flops import flops_per_token, peak_flops
from trainer.model.language_model import LanguageModel

TINY, CPU = MODEL_SIZES["tiny"], torch.device("cpu")


def test_the_operations_of_a_step_are_those_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model, length = LanguageModel(TINY, 300).bfloat16(), 40  # short bf16 texts: attention is written out as products
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, length, dtype=torch.long)).sum().backward()
    first, second = flops_per_token(TINY, 300)
    norms = sum(weight.numel() for weight in model.parameters() if weight.dim() == 1)
    products = (first - 6 * norms) * length + second * length**2
    assert counter.get_total_flops() == products


def test_the_peak_weights_every_product_by_its_share_of_the_step() -> None:
    """If each product takes time in proportion to its operations, the peak is their common speed."""
    timed = []

    def timer(left: Tensor, right: Tensor) -> float:
        timed.append((*left.shape, right.shape[1]))
        return 2.0 * left.shape[0] * left.shape[1] * right.shape[1] / 5e9

    assert peak_flops(TINY, 300, 64, dtype=torch.bfloat16, device=CPU, timer=timer) == pytest.approx(5e9)
    assert {(64, 64, 300), (64, 300, 64), (300, 64, 64)} <= {*timed}  # the output layer's three
    per_token, _ = flops_per_token(TINY, 300)
    norms = sum(weight.numel() for weight in LanguageModel(TINY, 300).parameters() if weight.dim() == 1)
    products = 3 * (7 * TINY.layers + 1)
    found = peak_flops(TINY, 300, 64, dtype=torch.bfloat16, device=CPU, timer=lambda left, right: 1.0)
    assert found * products == 64 * (per_token - 6 * norms)
