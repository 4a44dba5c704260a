"""Logits compared with `transformers`, generation compared with the plain forward pass, checkpoints on disk."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from trainer.config import MODEL_SIZES, ModelShape
from trainer.errors import Diverged, UserError
from trainer.interop.transformers_folder import model_config
from trainer.model.language_model import LanguageModel
from trainer.model.sampling import choose_token
from trainer.model.transformer import attend

TINY = MODEL_SIZES["tiny"]
VOCAB = 300


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(5))


def rough_model(shape: ModelShape = TINY, vocab_size: int = VOCAB, seed: int = 11) -> LanguageModel:
    """A model whose weights are large enough for attention and norms to matter: fresh ones are nearly zero."""
    model = LanguageModel(shape, vocab_size)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.15)
    return model


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return rough_model()


@pytest.mark.parametrize(
    "shape",
    [
        TINY,
        replace(TINY, kv_heads=4),
        replace(TINY, kv_heads=1),
        replace(TINY, heads=6, kv_heads=2, head_dim=32, layers=3),
        replace(TINY, rope_theta=1_000_000.0, norm_epsilon=1e-5),
    ],
    ids=["groups-of-2", "none-shared", "all-shared", "wide-heads", "other-constants"],
)
def test_logits_equal_those_of_transformers(shape: ModelShape) -> None:
    ours = rough_model(shape)
    theirs = Qwen3ForCausalLM(Qwen3Config(**model_config(shape, VOCAB)))
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])  # tied: it is the embedding
    assert sum(weight.numel() for weight in ours.parameters()) == shape.parameters(VOCAB)
    ids = random_ids(2, 70)
    with torch.no_grad():
        expected = theirs(ids).logits
        torch.testing.assert_close(ours(ids), expected, atol=1e-5, rtol=1e-5)
        ours.model.layers[0].self_attn.k_norm.weight[0] += 0.05
        assert (ours(ids) - expected).abs().max() > 1e-4, "the control: a change to one weight is detected"


def test_initial_weights_depend_only_on_the_seed() -> None:
    before = torch.random.get_rng_state()
    model = LanguageModel(TINY, VOCAB, seed=3)
    torch.manual_seed(99)
    model.initialize(3)
    torch.random.set_rng_state(before)
    again = LanguageModel(TINY, VOCAB, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    other = LanguageModel(TINY, VOCAB, seed=4).model.embed_tokens.weight
    assert not torch.equal(model.model.embed_tokens.weight, other)
    # The same recipe as in the one-file reference.
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        expected = torch.ones(parameter.shape)
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            expected = torch.zeros(parameter.shape)
        elif parameter.dim() > 1:
            expected = torch.empty(parameter.shape).normal_(0.0, 0.02, generator=generator)
        assert torch.equal(parameter, expected)


def test_padding_on_the_right_changes_nothing(model: LanguageModel) -> None:
    ids = random_ids(1, 30)
    zeros, others = (torch.cat([ids, torch.full((1, 34), filler)], dim=1) for filler in (0, 7))
    with torch.no_grad():
        assert torch.equal(model(zeros)[:, :30], model(others)[:, :30]), "padding has no effect"
        # Another length may use other kernels, which round differently.
        torch.testing.assert_close(model(zeros)[:, :30], model(ids), atol=1e-5, rtol=1e-5)


def test_bf16_stays_close_to_fp32_at_late_positions() -> None:
    exact, rounded = rough_model(), rough_model().to(torch.bfloat16)
    ids = random_ids(1, 700)
    with torch.no_grad():
        wanted, got = exact(ids), rounded(ids)
    assert got.dtype == torch.bfloat16
    errors = (got.float() - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    # Positions rounded to bf16 would break only the end of the text.
    assert errors[0, :50].mean() < 0.05
    assert errors[0, -50:].mean() < 0.05


def test_rotary_tables_stay_fp32_and_grow() -> None:
    model = LanguageModel(TINY, VOCAB)
    before = model.rotary(8).clone()
    model.to(torch.bfloat16)
    assert model.rotary(8).dtype == torch.float32
    assert torch.equal(model.rotary(8), before)
    with torch.inference_mode():
        assert model.rotary(3000).shape[1] == 3000
    assert torch.equal(model.rotary(8), before)
    assert "rotary" not in " ".join(model.state_dict())
    # Tables grown during an evaluation must not be inference tensors, which training rejects.
    model.float()(random_ids(1, 2000)).sum().backward()


@pytest.mark.parametrize("kv_heads", [1, 3, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("length", "reach"), [(1, 1), (1, 9), (9, 9), (4, 9), (600, 600)])
def test_attention_equals_the_textbook_formula(length: int, reach: int, dtype: torch.dtype, kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(2, 6, length, 16, generator=generator).to(dtype)
    keys, values = (torch.randn(2, kv_heads, reach, 16, generator=generator).to(dtype) for _ in range(2))
    q, k, v = (tensor.double().repeat_interleave(6 // tensor.shape[1], dim=1) for tensor in (queries, keys, values))
    scores = q @ k.transpose(2, 3) / 4
    future = torch.arange(reach) > torch.arange(reach - length, reach)[:, None]
    expected = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(attend(queries, keys, values).double(), expected, atol=tolerance, rtol=0)


def generated_without_cache(model: LanguageModel, prompt: list[int], max_length: int, temperature: float) -> list[int]:
    generator = torch.Generator().manual_seed(17)
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < max_length:
            ids.append(choose_token(model(torch.tensor([ids]))[0, -1], temperature, 50, generator))
    return ids


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("prompt_length", [1, 10])
def test_generation_is_equal_without_cache(model: LanguageModel, temperature: float, prompt_length: int) -> None:
    prompt = random_ids(prompt_length).tolist()
    ids = model.generate(prompt, 40, temperature=temperature, seed=17)
    assert ids == generated_without_cache(model, prompt, 40, temperature)
    assert ids[:prompt_length] == prompt
    assert len(set(ids[prompt_length:])) > 3, "the control: the text varies"


def test_generation_by_default_is_seeded_sampling(model: LanguageModel) -> None:
    first = model.generate([1, 2, 3], max_length=40)
    assert first == model.generate([1, 2, 3], max_length=40)
    assert first != model.generate([1, 2, 3], max_length=40, seed=1)
    assert first == [1, 2, 3, *model.stream([1, 2, 3], max_length=40)]


def test_generation_does_not_change_the_training_state() -> None:
    model = rough_model()
    model.train()
    model(random_ids(1, 8)).sum().backward()
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    tables, rng = model.rotary.tables, torch.random.get_rng_state()
    stream = model.stream([1, 2], 2000)
    next(stream)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled(), "the caller's modes, between two tokens"
    model.generate([1, 2], 40)
    assert model.training
    assert model.rotary.tables is tables
    assert torch.equal(torch.random.get_rng_state(), rng)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad and torch.equal(parameter, weights[name])
        assert torch.equal(parameter.grad, gradients[name])
    model(random_ids(1, 8)).sum().backward()


def test_generation_at_the_limits_of_length(model: LanguageModel) -> None:
    assert len(model.generate(random_ids(1100).tolist(), 1103)) == 1103  # beyond the rotary tables of training
    assert model.generate([1, 2, 3], max_length=2) == [1, 2, 3]
    assert model.generate([1, 2, 3], max_length=3) == [1, 2, 3]
    with pytest.raises(ValueError, match="prompt is empty"):
        model.generate([], max_length=5)
    for token in (-1, VOCAB):
        with pytest.raises(ValueError, match=f"prompt id {token} is not a token"):
            model.generate([0, token], max_length=5)


@pytest.fixture
def saved(model: LanguageModel, tmp_path: Path) -> Path:
    model.save_checkpoint(tmp_path / "weights.bin")
    return tmp_path / "weights.bin"


def test_weights_survive_a_round_trip_to_disk(model: LanguageModel, saved: Path) -> None:
    fresh = LanguageModel(TINY, VOCAB)
    fresh.load_checkpoint(saved)
    for loaded in (fresh, LanguageModel.from_checkpoint(saved)):
        assert loaded.shape == TINY
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    rounded = LanguageModel(TINY, VOCAB).to(torch.bfloat16)
    rounded.load_checkpoint(saved)
    weight = rounded.model.embed_tokens.weight
    assert torch.equal(weight, model.model.embed_tokens.weight.bfloat16())
    assert rounded.checkpoint_state()["model"]["model.norm.weight"].dtype == torch.float32


def test_a_checkpoint_of_another_shape_is_rejected_in_one_line(saved: Path) -> None:
    for other, difference in [
        (LanguageModel(TINY, VOCAB + 1), "vocab_size is 300, not 301"),
        (LanguageModel(replace(TINY, layers=3), VOCAB), "layers is 2, not 3"),
        (LanguageModel(replace(TINY, rope_theta=5.0), VOCAB), "rope_theta is 10000.0, not 5.0"),
    ]:
        before = other.model.norm.weight.detach().clone()
        with pytest.raises(UserError, match=difference) as refusal:
            other.load_checkpoint(saved)
        assert "\n" not in str(refusal.value) and saved.name in str(refusal.value)
        assert torch.equal(other.model.norm.weight, before)


def test_missing_weights_and_wrong_shapes_are_rejected(model: LanguageModel) -> None:
    state = model.checkpoint_state()
    without = {**state, "model": {k: v for k, v in state["model"].items() if k != "model.norm.weight"}}
    with pytest.raises(UserError, match=r"1 weights do not fit, the first is model\.norm\.weight"):
        LanguageModel.from_checkpoint(without)
    misshapen = {**state, "model": {**state["model"], "model.norm.weight": torch.ones(3)}}
    with pytest.raises(UserError, match=r"model\.norm\.weight"):
        LanguageModel.from_checkpoint(misshapen)
    with pytest.raises(UserError, match="valid model shape"):
        LanguageModel.from_checkpoint({"model": state["model"]})


def test_the_average_is_loaded_and_the_training_weights_are_checked_too() -> None:
    state, model = LanguageModel(TINY, VOCAB, seed=1).checkpoint_state(), LanguageModel(TINY, VOCAB, seed=2)
    average = LanguageModel(TINY, VOCAB, seed=3).checkpoint_state()["model"]
    model.copy_weights({**state, "average": average}, "it")
    assert all(torch.equal(weight, average[name]) for name, weight in model.named_parameters())
    state["model"]["model.norm.weight"][0] = torch.nan
    with pytest.raises(Diverged, match=r"model\.norm\.weight is not finite"):
        model.copy_weights({**state, "average": average}, "it")
