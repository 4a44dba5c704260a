"""Choosing tokens from given logits, and logits of one token at a time."""

import dataclasses
import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.trainer.model.test_language_model import rough_model
from trainer.config import MODEL_SIZES, ModelShape
from trainer.model.language_model import LanguageModel
from trainer.model.sampling import CachedDecoder, product, sample_tokens

LOGITS = torch.tensor([0.0, 3.0, 1.0, 2.0, -1.0])


class Table:
    """A model with constant logits that records the ids it reads."""

    def __init__(self, logits: torch.Tensor = LOGITS) -> None:
        self.logits = logits
        self.reads: list[list[int]] = []

    def __call__(self, ids: list[int]) -> torch.Tensor:
        self.reads.append(ids)
        return self.logits


def sample(table: Table, count: int = 5, *, temperature: float = 1.0, top_k: int | None = None, seed: int = 0):
    return sample_tokens(table, [7, 8], count, temperature=temperature, top_k=top_k, seed=seed)


def test_the_model_reads_the_prompt_once_then_each_token_but_the_last() -> None:
    table = Table()
    stream = sample(table, 3)
    tokens = [next(stream)]
    assert table.reads == [[7, 8]], "the next token is not computed before it is needed"
    tokens += stream
    assert table.reads == [[7, 8], [tokens[0]], [tokens[1]]]


def test_zero_temperature_takes_the_most_likely_token() -> None:
    assert list(sample(Table(), temperature=0)) == [1] * 5
    assert list(sample(Table(), temperature=1e-30)) == [1] * 5


def test_only_the_k_most_likely_tokens_and_none_of_probability_zero_are_chosen() -> None:
    assert set(sample(Table(), 300, temperature=5.0, top_k=2)) == {1, 3}
    assert set(sample(Table(), 300, temperature=5.0, top_k=99)) == {0, 1, 2, 3, 4}
    without_1 = LOGITS.clone()
    without_1[1] = -torch.inf
    assert set(sample(Table(without_1), 300, temperature=5.0)) == {0, 2, 3, 4}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_with_the_probabilities_of_the_softmax(temperature: float) -> None:
    draws = 4000
    counts = Counter(sample(Table(), draws, temperature=temperature))
    for token, probability in enumerate((LOGITS / temperature).softmax(0).tolist()):
        spread = math.sqrt(probability * (1 - probability) / draws)
        assert abs(counts[token] / draws - probability) < 5 * spread


def test_a_seed_fixes_the_tokens_and_the_global_random_state_does_not_change() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (list(sample(Table(), 50, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_non_finite_logits_raise(bad: float, temperature: float) -> None:
    logits = LOGITS.clone()
    logits[2] = bad
    with pytest.raises(FloatingPointError, match="not finite"):
        list(sample(Table(logits), temperature=temperature))


def test_invalid_arguments_raise_before_the_model_reads_anything() -> None:
    table = Table()
    with pytest.raises(ValueError, match="prompt is empty"):
        sample_tokens(table, [], 1, temperature=1, top_k=None, seed=0)
    with pytest.raises(ValueError, match="temperature"):
        sample(table, temperature=-1)
    with pytest.raises(ValueError, match="top_k"):
        sample(table, top_k=0)
    assert table.reads == []


TINY = MODEL_SIZES["tiny"]
SHARED = dataclasses.replace(TINY, kv_heads=1)
ODD = dataclasses.replace(TINY, kv_heads=TINY.heads, head_dim=24, norm_epsilon=1e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03), (torch.float64, 1e-5)])
@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("shape", [SHARED, ODD])
def test_logits_equal_those_of_the_whole_text(shape: ModelShape, joined: bool, dtype: Any, tolerance: float) -> None:
    model, ids = rough_model(shape).to(dtype), list(range(7, 19))
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0].float()
    if joined:
        model.join_products()
    for first in (1, 5):  # a prompt of one token, and of several
        decoder = CachedDecoder(model.model, shape, capacity=2)  # too small: the cache must grow
        found = torch.stack([decoder.read(ids[:first]), *(decoder.read([token]) for token in ids[first:])])
        assert (found.float() - expected[first - 1 :]).norm() < tolerance * expected[first - 1 :].norm()


def test_attention_may_return_any_memory_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's fp32 kernel returns its result position by position."""
    model = rough_model()
    attention = torch.nn.functional.scaled_dot_product_attention

    def by_position(*tensors: torch.Tensor, **options: object) -> torch.Tensor:
        return attention(*tensors, **options).transpose(1, 2).contiguous().transpose(1, 2)

    expected = reads(model)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", by_position)
    assert torch.equal(reads(model), expected)


def test_a_prompt_may_be_read_in_parts() -> None:
    model, ids = rough_model(), list(range(12))
    whole, parts = (CachedDecoder(model.model, model.shape, capacity) for capacity in (12, 2))
    parts.read(ids[:5])
    torch.testing.assert_close(parts.read(ids[5:]), whole.read(ids), atol=1e-5, rtol=1e-5)


def test_a_replaced_matrix_is_used_for_every_token() -> None:
    # As LoRA replaces it.
    class Twice(torch.nn.Module):
        def __init__(self, matrix: torch.nn.Module) -> None:
            super().__init__()
            self.matrix = matrix

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.matrix(x)

    model, ids = rough_model(), list(range(7, 15))
    attention = model.model.layers[1].self_attn
    attention.o_proj = Twice(attention.o_proj)
    decoder = CachedDecoder(model.model, model.shape, capacity=8)
    decoder.read(ids[:4])
    found = [decoder.read([token]) for token in ids[4:]][-1]
    with torch.no_grad():
        torch.testing.assert_close(found, model(torch.tensor([ids]))[0, -1], atol=1e-4, rtol=1e-4)


def test_generation_uses_the_current_weights() -> None:
    model = rough_model()
    before = model.generate([1, 2, 3], 20, temperature=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1)
    assert model.generate([1, 2, 3], 20, temperature=0) != before


def uses_onednn(weight: torch.Tensor) -> bool:
    """Whether `product` bypasses `torch.nn.functional.linear`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", lambda x, weight: torch.full((1, len(weight)), torch.nan))
        return not product(weight)(torch.ones(1, weight.shape[1], dtype=weight.dtype)).isnan().any()


NO_OPERATORS = SimpleNamespace()
OTHER_ARGUMENTS = SimpleNamespace(
    _is_mkldnn_bf16_supported=lambda: True, _reorder_linear_weight=lambda: None, _linear_pointwise=lambda: None
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("operators", [NO_OPERATORS, OTHER_ARGUMENTS], ids=["missing", "changed"])
def test_torchs_private_operators_may_be_missing(monkeypatch: pytest.MonkeyPatch, operators: Any, dtype: Any) -> None:
    weight, row = torch.randn(5, 3).to(dtype), torch.randn(1, 3).to(dtype)
    expected = torch.nn.functional.linear(row, weight)
    torch.testing.assert_close(product(weight)(row), expected)
    has_onednn = torch.backends.mkldnn.is_available()
    assert uses_onednn(weight) == (has_onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    model = rough_model().to(dtype)
    text, logits = model.generate([1, 2, 3], 30), reads(model)
    monkeypatch.setattr(torch.ops, "mkldnn", operators)
    assert not uses_onednn(weight)
    torch.testing.assert_close(product(weight)(row), expected)
    torch.testing.assert_close(reads(model), logits, atol=1e-4 if dtype == torch.float32 else 0.1, rtol=0.01)
    assert dtype == torch.bfloat16 or model.generate([1, 2, 3], 30) == text


def reads(model: LanguageModel) -> torch.Tensor:
    """The logits after each of twelve tokens, read one at a time."""
    decoder = CachedDecoder(model.model, model.shape, capacity=12)
    return torch.stack([decoder.read([token]) for token in range(7, 19)])
