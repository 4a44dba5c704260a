"""Choosing tokens, with a table of numbers for a model."""

import math
from collections import Counter

import pytest
import torch

from trainer.model.sampling import choose_token, sample_tokens

LOGITS = torch.tensor([0.0, 3.0, 1.0, 2.0, -1.0])


class Table:
    """Gives the logits of a row of numbers and notes what it was asked to read."""

    def __init__(self, logits: torch.Tensor = LOGITS) -> None:
        self.logits = logits
        self.reads: list[list[int]] = []

    def __call__(self, ids: list[int]) -> torch.Tensor:
        self.reads.append(ids)
        return self.logits


def sample(table: Table, count: int = 5, *, temperature: float = 1.0, top_k: int | None = None, seed: int = 0):
    return sample_tokens(table, [7, 8], count, temperature=temperature, top_k=top_k, seed=seed)


def test_prompt_is_read_once_then_each_token_but_the_last() -> None:
    table = Table()
    tokens = list(sample(table, 3))
    assert table.reads == [[7, 8], [tokens[0]], [tokens[1]]]


def test_a_token_is_there_before_the_next_is_computed() -> None:
    table = Table()
    stream = sample(table)
    next(stream)
    assert len(table.reads) == 1


def test_zero_temperature_takes_the_likeliest() -> None:
    assert list(sample(Table(), temperature=0)) == [1] * 5
    assert list(sample(Table(), temperature=1e-30)) == [1] * 5


def test_top_k_never_leaves_the_k_likeliest() -> None:
    assert set(sample(Table(), 300, temperature=5.0, top_k=2)) == {1, 3}
    assert set(sample(Table(), 300, temperature=5.0, top_k=99)) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_those_of_the_softmax(temperature: float) -> None:
    draws = 4000
    counts = Counter(sample(Table(), draws, temperature=temperature))
    for token, probability in enumerate((LOGITS / temperature).softmax(0).tolist()):
        spread = math.sqrt(probability * (1 - probability) / draws)
        assert abs(counts[token] / draws - probability) < 5 * spread


def test_same_seed_same_tokens_and_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (list(sample(Table(), 50, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error(bad: float, temperature: float) -> None:
    logits = LOGITS.clone()
    logits[2] = bad
    with pytest.raises(FloatingPointError, match="not finite"):
        list(sample(Table(logits), temperature=temperature))


def test_a_forbidden_token_is_never_chosen() -> None:
    logits = LOGITS.clone()
    logits[1] = -torch.inf
    generator = torch.Generator().manual_seed(0)
    assert 1 not in {choose_token(logits, 3.0, None, generator) for _ in range(200)}


def test_bad_requests_fail_before_anything_is_read() -> None:
    table = Table()
    with pytest.raises(ValueError, match="prompt is empty"):
        sample_tokens(table, [], 1, temperature=1, top_k=None, seed=0)
    with pytest.raises(ValueError, match="temperature"):
        sample(table, temperature=-1)
    with pytest.raises(ValueError, match="top_k"):
        sample(table, top_k=0)
    assert table.reads == []
