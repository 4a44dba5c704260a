import pytest
import torch

from trainer.learning.weight_average import DECAY, INTERVAL, AveragedWeights


def test_the_average_of_a_ramp_follows_the_formula() -> None:
    """If the weights grow by 1 per interval, the average after t intervals is (9 t + 1) / 10."""
    weight = torch.zeros(2)
    average = AveragedWeights([weight])
    for step in range(1, 20 * INTERVAL + 1):
        weight.fill_(step / INTERVAL)
        average.follow([weight], step)
        intervals = step // INTERVAL
        if intervals:
            expected = ((DECAY + 1) * intervals + 1) / (DECAY + 2)
            assert average.weights[0].tolist() == pytest.approx([expected] * 2, rel=1e-5)
        else:
            assert torch.equal(average.weights[0], weight)  # no average yet: the weights themselves


def test_a_copied_average_continues_exactly() -> None:
    whole, first, second = (AveragedWeights([torch.zeros(1)]) for _ in range(3))
    path = torch.randn(100, 1, generator=torch.Generator().manual_seed(0))
    for step, weight in enumerate(path, 1):
        whole.follow([weight], step)
        (first if step <= 37 else second).follow([weight], step)
        if step == 37:
            second.copy_from(first.weights)
    assert torch.equal(whole.weights[0], second.weights[0])
