"""A text read one token at a time gives what the model gives for the whole of it."""

import dataclasses

import pytest
import torch

from tests.trainer.model.test_language_model import rough_model
from trainer.config import MODEL_SIZES, ModelShape
from trainer.model.sampling import CachedDecoder, product

TINY = MODEL_SIZES["tiny"]
SHARED = dataclasses.replace(TINY, kv_heads=1)
ODD = dataclasses.replace(TINY, kv_heads=TINY.heads, head_dim=24, norm_epsilon=1e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03), (torch.float64, 1e-5)])
@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("shape", [SHARED, ODD])
def test_one_token_at_a_time_is_the_whole_at_once(
    shape: ModelShape, joined: bool, dtype: torch.dtype, tolerance: float
) -> None:
    model, ids = rough_model(shape).to(dtype), list(range(7, 19))
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0].float()
    if joined:
        model.join_products()
    for first in (1, 5):  # a prompt of one token, and of several
        decoder = CachedDecoder(model.model, shape, capacity=2)  # too small: it must grow
        found = torch.stack([decoder.read(ids[:first]), *(decoder.read([token]) for token in ids[first:])])
        assert (found.float() - expected[first - 1 :]).norm() < tolerance * expected[first - 1 :].norm()


def test_attention_may_lay_its_result_out_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU's kernel for fp32 does it, position by position."""
    model, ids = rough_model(), list(range(7, 19))
    attention = torch.nn.functional.scaled_dot_product_attention

    def by_position(*tensors: torch.Tensor, **options: object) -> torch.Tensor:
        return attention(*tensors, **options).transpose(1, 2).contiguous().transpose(1, 2)

    decoders = [CachedDecoder(model.model, model.shape, capacity=12) for _ in range(2)]
    expected = [decoders[0].read([token]) for token in ids]
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", by_position)
    assert all(torch.equal(decoders[1].read([token]), logits) for token, logits in zip(ids, expected, strict=True))


def test_a_prompt_may_be_read_in_parts() -> None:
    model, ids = rough_model(), list(range(12))
    whole, parts = (CachedDecoder(model.model, model.shape, capacity) for capacity in (12, 2))
    parts.read(ids[:5])
    torch.testing.assert_close(parts.read(ids[5:]), whole.read(ids), atol=1e-5, rtol=1e-5)


def test_what_stands_for_a_matrix_is_asked_at_every_token() -> None:
    """As LoRA does it."""

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


def test_each_text_is_written_by_the_weights_as_they_are() -> None:
    model = rough_model()
    before = model.generate([1, 2, 3], 20, temperature=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1)
    assert model.generate([1, 2, 3], 20, temperature=0) != before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_is_laid_out_where_onednn_can(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    weight, row = torch.randn(5, 3).to(dtype), torch.randn(1, 3).to(dtype)
    expected = torch.nn.functional.linear(row, weight)
    fits = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *given: torch.zeros(1, 5))
    torch.testing.assert_close(product(weight)(row), expected if fits else torch.zeros(1, 5))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not product(weight)(row).any()
