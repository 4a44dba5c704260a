"""A text read one token at a time gives what the model gives for the whole of it."""

import dataclasses

import pytest
import torch

from trainer.config import MODEL_SIZES
from trainer.model import LanguageModel
from trainer.reader import Reader, product

SHAPE = dataclasses.replace(MODEL_SIZES["tiny"], kv_heads=1)


def rough_model() -> LanguageModel:
    """With gains and weights large enough that each of them matters."""
    model, generator = LanguageModel(SHAPE, 300), torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.15)
    return model


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("joined", [False, True])
def test_one_token_at_a_time_is_the_whole_at_once(joined: bool, dtype: torch.dtype, tolerance: float) -> None:
    model, ids = rough_model().to(dtype), list(range(7, 19))
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0].float()
    if joined:
        model.join_products()
    for first in (1, 5):  # a prompt of one token, and of several
        reader = Reader(model.model, model.shape, capacity=2)  # too small: it must grow
        found = [reader.read(ids[:first]), *(reader.read([token]) for token in ids[first:])]
        spread = (torch.stack(found).float() - expected[first - 1 :]).norm() / expected[first - 1 :].norm()
        assert spread < tolerance


def test_a_prompt_may_be_read_in_parts() -> None:
    model, ids = rough_model(), list(range(12))
    whole, parts = (Reader(model.model, model.shape, capacity) for capacity in (12, 2))
    parts.read(ids[:5])
    torch.testing.assert_close(parts.read(ids[5:]), whole.read(ids), atol=1e-5, rtol=1e-5)


def test_without_onednn_products_are_made_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, row = torch.randn(5, 3), torch.randn(1, 3)
    packed = product(weight)(row)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    torch.testing.assert_close(packed, product(weight)(row))
    assert torch.equal(product(weight)(row), torch.nn.functional.linear(row, weight))
