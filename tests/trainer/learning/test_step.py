import math
from typing import Any

import pytest
import torch

from trainer.config import MODEL_SIZES
from trainer.learning.step import TrainingStep, padded_lengths
from trainer.model.language_model import LanguageModel

IDS = [5, 17, 3, 99, 42, 7, 8, 250, 11, 5, 17, 3]


def make_step(dtype: torch.dtype = torch.float32, **options: Any) -> TrainingStep:
    return TrainingStep(LanguageModel(MODEL_SIZES["tiny"], 300), dtype=dtype, max_seq_length=64, **options)


@pytest.mark.parametrize("longest", [2, 32, 33, 34, 128, 129, 256, 1000, 4096])
def test_padded_lengths_are_few_and_fit_every_sample(longest: int) -> None:
    lengths = padded_lengths(longest)
    assert lengths[-1] >= longest - 1 and len(lengths) <= 16
    for predictions in range(1, longest):
        assert next(length for length in lengths if length >= predictions) <= max(32, 1.5 * predictions + 32)
    assert 256 in padded_lengths(256)


def test_loss_accuracy_and_norm_equal_those_of_plain_torch() -> None:
    step = make_step()
    model = LanguageModel(MODEL_SIZES["tiny"], 300)
    logits = model(torch.tensor([IDS[:-1]]))[0]
    losses = torch.nn.functional.cross_entropy(logits, torch.tensor(IDS[1:]), reduction="none")
    losses.mean().backward()
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters() if p.grad is not None))
    result = step(IDS, 1e-3)
    assert result.loss == pytest.approx(losses.mean().item(), rel=1e-5)
    assert result.token_losses.tolist() == pytest.approx(losses.tolist(), rel=1e-4)
    assert result.accuracy == (logits.argmax(-1) == torch.tensor(IDS[1:])).float().mean().item()
    assert result.gradient_norm == pytest.approx(norm, rel=1e-4)
    assert len(result.token_ranks) == len(IDS) - 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_covers_all_gradients(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(size, generator=generator).to(dtype) for size in ((300, 64), (64,), (7, 3))]
    whole = torch.cat([gradient.double().flatten() for gradient in gradients]).norm().item()
    found = TrainingStep._l2_norm(gradients)
    tolerance = 1e-6 if dtype == torch.float32 else 5e-4
    assert found.dtype == torch.float32 and found.item() == pytest.approx(whole, rel=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_equal_those_of_autograd_also_for_repeated_tokens(dtype: torch.dtype) -> None:
    ids = [7, 3, 0, 3, 3, 9, 0, 3, 250, 299]  # 0 is also the padding id
    step = make_step(dtype)
    model = LanguageModel(MODEL_SIZES["tiny"], 300).to(dtype)
    loss = torch.nn.functional.cross_entropy(model(torch.tensor([ids[:-1]]))[0].float(), torch.tensor(ids[1:]))
    loss.backward()
    _, gradients = step._gradients(ids, 32)
    for (name, weight), gradient in zip(model.named_parameters(), gradients, strict=True):
        assert weight.grad is not None and gradient.dtype == dtype
        difference = (gradient.float() - weight.grad.float()).norm() / weight.grad.float().norm().clamp(min=1e-6)
        assert difference < (1e-4 if dtype == torch.float32 else 0.03), name


def test_the_embedding_is_updated_with_the_clipped_gradient() -> None:
    """The fused kernel's `grad_scale` has the effect of clipping: it equals plain AdamW on clipped gradients."""
    step, model = make_step(), LanguageModel(MODEL_SIZES["tiny"], 300)
    ids = (3 * IDS)[: step.lengths[0] + 1]  # no padding: same kernels, so only the clipping can differ
    recipe = step.optimizer.recipe
    embedding = model.model.embed_tokens.weight
    rate = 1e-2 * recipe.embedding_rate
    plain = torch.optim.AdamW([embedding], lr=rate, betas=(0.9, recipe.beta2(64)), weight_decay=0.0, foreach=False)
    result = step(ids, 1e-2)
    torch.nn.functional.cross_entropy(model(torch.tensor([ids[:-1]]))[0], torch.tensor(ids[1:])).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    plain.step()
    assert result.gradient_norm > 1.0  # the control: clipping has an effect
    assert result.gradient_norm == pytest.approx(norm.item(), rel=1e-3)
    assert torch.allclose(step.model.model.embed_tokens.weight, embedding, atol=2e-5)


def test_the_averaged_model_has_the_average_and_using_it_changes_nothing() -> None:
    observed, unobserved = make_step(torch.bfloat16), make_step(torch.bfloat16)
    losses = []
    for _ in range(20):
        losses.append(observed(IDS, 3e-3).loss)
        observed.averaged()(torch.tensor([IDS]))
    assert losses == [unobserved(IDS, 3e-3).loss for _ in range(20)]
    state, model = observed.state_dict(), observed.averaged()
    for name, weight in model.named_parameters():
        assert torch.equal(weight, state["average"][name].to(torch.bfloat16))
    name = "model.embed_tokens.weight"
    assert not torch.equal(state["average"][name], state["model"][name])
    assert model is not observed.model and not any(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_joined_products_use_the_current_weights(dtype: torch.dtype) -> None:
    step, ids = make_step(dtype), torch.tensor([IDS])
    before = step.averaged()(ids)
    for _ in range(20):
        step(IDS, 3e-3)
    for model in (step.model, step.averaged()):
        plain = LanguageModel(MODEL_SIZES["tiny"], 300).to(dtype)
        plain.load_state_dict(model.state_dict())
        assert torch.allclose(model(ids), plain(ids), rtol=0, atol=1e-4 if dtype == torch.float32 else 0.1)
        assert not torch.allclose(before, plain(ids), atol=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_document_is_memorized(dtype: torch.dtype) -> None:
    step = make_step(dtype)
    losses = [step(IDS, 3e-3).loss for _ in range(150)]
    assert losses[0] == pytest.approx(math.log(300), abs=0.5)
    assert losses[-1] < 0.1


def test_a_non_finite_gradient_changes_nothing() -> None:
    step = make_step(torch.bfloat16)
    step(IDS, 1e-3)
    before = {name: value.clone() for name, value in step.state_dict()["model"].items()}
    moments = [value.clone() for value in step.optimizer.memory()]
    hooks = [leaf.register_hook(lambda gradient: gradient * math.nan) for leaf, _ in step._leaves]
    for _ in range(4):  # in two steps, every matrix of this width has its turn
        result = step(IDS, 1e-3)
        assert not result.updated and math.isnan(result.gradient_norm)
    for hook in hooks:
        hook.remove()
    assert all(torch.equal(before[name], value) for name, value in step.state_dict()["model"].items())
    assert all(torch.equal(old, new) for old, new in zip(moments, step.optimizer.memory(), strict=True))
    assert step(IDS, 1e-3).updated


def test_updates_too_small_for_bf16_reach_the_master_weights() -> None:
    step = make_step(torch.bfloat16)
    before = step.state_dict()["model"]["model.norm.weight"].clone()
    for _ in range(3):
        step(IDS, 1e-5)
    after = step.state_dict()["model"]["model.norm.weight"]
    assert after.dtype == torch.float32 and not torch.equal(before, after)
    assert torch.equal(step.model.model.norm.weight.float(), torch.ones_like(after))  # 1 + 3e-5 is 1 in bf16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_state_continues_bit_for_bit(dtype: torch.dtype) -> None:
    whole, first, second = make_step(dtype), make_step(dtype), make_step(dtype)
    expected = [whole(IDS, 1e-3).loss for _ in range(10)]
    losses = [first(IDS, 1e-3).loss for _ in range(5)]  # in the middle of a round of the matrices
    second.load_state_dict(first.state_dict())
    assert losses + [second(IDS, 1e-3).loss for _ in range(5)] == expected
    average, expected_average = second.state_dict()["average"], whole.state_dict()["average"]
    assert all(torch.equal(average[name], weight) for name, weight in expected_average.items())


def test_a_trial_pass_changes_nothing() -> None:
    with_trial, without = make_step(), make_step()
    assert with_trial.trial_seconds(63) > 0
    assert [with_trial(IDS, 1e-3).loss for _ in range(3)] == [without(IDS, 1e-3).loss for _ in range(3)]


@pytest.mark.parametrize("place", ["model", "average", "exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_values_are_found_in_weights_and_moments(place: str, value: float) -> None:
    step = make_step(torch.bfloat16)
    step(IDS, 1e-3)
    assert step.is_finite()
    state = step.state_dict()
    name = "model.norm.weight"
    (state[place][name] if place in state else state["optimizer"][name][place])[2] = value
    assert not step.is_finite()


def test_padding_does_not_change_the_gradients() -> None:
    step = make_step()
    plain, gradients = step._gradients(IDS, len(IDS) - 1)
    for length in step.lengths:
        padded, others = step._gradients(IDS, length)
        assert padded.loss.item() == pytest.approx(plain.loss.item(), rel=1e-5)
        for gradient, other in zip(gradients, others, strict=True):
            torch.testing.assert_close(other, gradient, atol=1e-6, rtol=1e-4)
