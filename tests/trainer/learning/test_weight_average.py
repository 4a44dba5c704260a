import pytest
import torch

from trainer.learning.weight_average import DECAY, INTERVAL, AveragedWeights


def test_the_average_of_a_ramp_is_what_the_formula_says() -> None:
    """Weights that grow by one from look to look average to (9 t + 1) / 10: the mean reaches back over a tenth."""
    weight = torch.zeros(2)
    average = AveragedWeights([weight])
    for step in range(1, 20 * INTERVAL + 1):
        weight.fill_(step / INTERVAL)
        average.follow([weight], step)
        looks = step // INTERVAL
        if looks:
            expected = ((DECAY + 1) * looks + 1) / (DECAY + 2)
            assert average.weights[0].tolist() == pytest.approx([expected] * 2, rel=1e-5)


def test_until_the_first_look_it_is_the_weights_themselves() -> None:
    weight = torch.zeros(3)
    average = AveragedWeights([weight])
    for step in range(1, INTERVAL):
        weight.fill_(step)
        average.follow([weight], step)
        assert torch.equal(average.weights[0], weight)


def test_it_goes_on_where_another_was() -> None:
    whole, first, second = (AveragedWeights([torch.zeros(1)]) for _ in range(3))
    path = torch.randn(100, 1, generator=torch.Generator().manual_seed(0))
    for step, weight in enumerate(path, 1):
        whole.follow([weight], step)
        (first if step <= 37 else second).follow([weight], step)
        if step == 37:
            second.take(first.weights)
    assert torch.equal(whole.weights[0], second.weights[0])
