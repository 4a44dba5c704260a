import pytest
import torch
from torch import Tensor

from trainer.config import MODEL_SIZES
from trainer.learning import flops as peak
from trainer.learning.flops import flops_per_token, peak_flops
from trainer.model.language_model import LanguageModel

TINY, CPU = MODEL_SIZES["tiny"], torch.device("cpu")


def test_operations_are_those_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model, length = LanguageModel(TINY, 300).bfloat16(), 40  # whose attention is written out in products
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, length, dtype=torch.long)).sum().backward()
    first, second = flops_per_token(TINY, 300)
    norms = sum(weight.numel() for weight in model.parameters() if weight.dim() == 1)
    products = (first - 6 * norms) * length + second * length**2
    assert counter.get_total_flops() == products


def test_every_product_of_a_step_counts_as_often_as_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """With products that take as long as they have operations, the speed is that of each of them."""
    made = []

    def seconds(left: Tensor, right: Tensor) -> float:
        made.append((*left.shape, right.shape[1]))
        return 2.0 * left.shape[0] * left.shape[1] * right.shape[1] / 5e9

    monkeypatch.setattr(peak, "_seconds", seconds)
    assert peak_flops(TINY, 300, 64, dtype=torch.bfloat16, device=CPU) == pytest.approx(5e9)
    assert (64, 64, 300) in made and (64, 300, 64) in made and (300, 64, 64) in made  # the output layer's three

    monkeypatch.setattr(peak, "_seconds", lambda left, right: 1.0)
    per_token, _ = flops_per_token(TINY, 300)
    norms = sum(weight.numel() for weight in LanguageModel(TINY, 300).parameters() if weight.dim() == 1)
    products = 3 * (7 * TINY.layers + 1)
    assert peak_flops(TINY, 300, 64, dtype=torch.bfloat16, device=CPU) * products == 64 * (per_token - 6 * norms)


def test_a_product_is_timed_and_a_slow_one_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < peak._seconds(torch.ones(64, 64), torch.ones(64, 64)) < 0.1
    counts: list[int] = []

    def repeat(left: Tensor, right: Tensor, count: int) -> float:
        counts.append(count)
        return 2.0

    monkeypatch.setattr(peak, "_repeat", repeat)
    assert peak._seconds(torch.ones(2, 2), torch.ones(2, 2)) == 2.0 and counts == [1, 1]
