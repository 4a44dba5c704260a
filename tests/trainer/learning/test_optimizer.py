import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from trainer.learning.optimizer import MuonAdamW, Recipe, orthogonalize, turn_interval

NO, ONE = torch.tensor(0.0), torch.tensor(1.0)
WIDTH = 96
"""A width at which each matrix is updated every four steps."""
RECIPE = Recipe.for_width(WIDTH)
FP32 = torch.float32
both_dtypes = pytest.mark.parametrize("dtype", [FP32, torch.bfloat16])


def make_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    matrices = {"wide": (32, WIDTH), "tall": (288, WIDTH), "square": (WIDTH, WIDTH), "down": (WIDTH, 288)}
    shapes = {"model.embed_tokens.weight": (50, WIDTH), **matrices, "norm": (WIDTH,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def make_optimizer(weights: Mapping[str, Tensor], recipe: Recipe = RECIPE, dtype: torch.dtype = FP32) -> MuonAdamW:
    return MuonAdamW(weights, recipe, width=WIDTH, max_seq_length=256, dtype=dtype)


def make_gradients(weights: Mapping[str, Tensor], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(weight.shape, generator=generator) for weight in weights.values()]


@both_dtypes
@pytest.mark.parametrize("shape", [(64, 64), (32, 96), (288, 96), (96, 64), (64, 96)])
def test_an_orthogonalized_matrix_has_the_same_singular_vectors(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    inside = left.T @ orthogonalize(matrix, dtype).float() @ right.T
    values = inside.diagonal()
    # A square matrix has a singular value near 0, which stays small: it is noise.
    assert values.max() < 1.25 and (values > 0.7).float().mean() > 0.95
    assert (inside - values.diag()).abs().max() < (0.01 if dtype == torch.float32 else 0.1)


@both_dtypes
@pytest.mark.parametrize("rank", [1, 2, 7])
@pytest.mark.parametrize("size", [1e-8, 1.0, 1e6])
@pytest.mark.parametrize("shape", [(96, 288), (288, 96), (96, 96)])
def test_low_rank_stays_within_bounds(shape: tuple[int, int], rank: int, size: float, dtype: torch.dtype) -> None:
    """The polynomials diverge for singular values above 1; at rank 1 the norm is the singular value."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        left, right = (torch.randn(count, rank, generator=generator) for count in shape)
        values = torch.linalg.svdvals(orthogonalize(size * left @ right.T, dtype).float())
        assert values.max() < 1.25 and values[rank - 1] > 0.7


@both_dtypes
@pytest.mark.parametrize("shape", [(96, 288), (96, 96)])
def test_tiny_matrices_stay_within_bounds(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Once documents are memorized, momentum shrinks by 5 % per step; its squares underflow long before it does."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert not orthogonalize(0 * matrix, dtype).any()
    for power in range(-25, -8):
        found = orthogonalize(10.0**power * matrix, dtype).float()
        assert torch.linalg.matrix_norm(found, ord=2) < 1.25  # also false for non-finite values


def test_each_matrix_moves_once_per_round_by_the_length_in_the_recipe() -> None:
    weights = make_weights()
    optimizer = make_optimizer(weights, Recipe(matrix_rate=2.0))
    assert turn_interval(WIDTH) == 4 and turn_interval(16) == 1 and turn_interval(384) == 16
    moved: dict[str, int] = {}
    for number in range(4):
        before = {name: weight.clone() for name, weight in weights.items()}
        reported = optimizer.step(make_gradients(weights, number), 0.01, found_inf=NO, grad_scale=ONE)
        assert sorted(reported) == sorted(name for name in weights if not torch.equal(weights[name], before[name]))
        for name in ("wide", "tall", "square", "down"):
            change = weights[name] - before[name]
            if change.any():
                moved[name] = moved.get(name, 0) + 1
                reach = torch.linalg.matrix_norm(change, ord=2).item() / (0.01 * 2.0 * 4)
                assert reach == pytest.approx(math.sqrt(3) if name == "tall" else 1.0, rel=0.25)
        assert not torch.equal(weights["norm"], before["norm"])
        assert not torch.equal(weights["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    assert moved == {"wide": 1, "tall": 1, "square": 1, "down": 1}


def test_a_matrix_moves_against_its_momentum() -> None:
    weights = make_weights()
    optimizer = make_optimizer(weights)
    before, momentum = {name: weight.clone() for name, weight in weights.items()}, {}
    for number in range(4):
        gradients = make_gradients(weights, number)
        for name, gradient in zip(weights, gradients, strict=True):
            momentum[name] = 0.95 * momentum.get(name, 0.0) + 0.05 * gradient / 2.5
        optimizer.step(gradients, 0.01, found_inf=NO, grad_scale=torch.tensor(2.5))
        place = (3 - number) % 4
        name = ("wide", "tall", "square", "down")[place]
        reach = 0.01 * optimizer.recipe.matrix_rate * 4 * (math.sqrt(3) if name == "tall" else 1)
        expected = -orthogonalize(momentum[name], torch.float32) * reach
        assert torch.allclose(weights[name] - before[name], expected, atol=1e-5)


def test_adamw_updates_embedding_and_norms_at_their_own_rates() -> None:
    weights, plain = make_weights(), make_weights()
    optimizer = make_optimizer(weights, Recipe(matrix_rate=1.0, embedding_rate=3.0, norm_rate=0.5))
    embedding, norm = (plain[name].requires_grad_() for name in ("model.embed_tokens.weight", "norm"))
    groups, betas = [{"params": [embedding], "lr": 0.03}, {"params": [norm], "lr": 0.005}], (0.9, 2 ** (-255 / 10e6))
    reference = torch.optim.AdamW(groups, betas=betas, weight_decay=0.0, foreach=False)
    for number in range(5):
        gradients = make_gradients(weights, number)
        embedding.grad, norm.grad = gradients[0] / 2.5, gradients[-1] / 2.5
        reference.step()
        optimizer.step(gradients, 0.01, found_inf=NO, grad_scale=torch.tensor(2.5))
    assert torch.allclose(weights["model.embed_tokens.weight"], embedding, atol=1e-6)
    assert torch.allclose(weights["norm"], norm, atol=1e-6)


@both_dtypes
@pytest.mark.parametrize("found_inf", [NO, ONE])
def test_momenta_are_the_same_without_reading_a_number_back(found_inf: Tensor, dtype: torch.dtype) -> None:
    """The code path of a GPU, on a CPU."""
    weights = make_weights()
    seen, unseen = make_optimizer(weights, dtype=dtype), make_optimizer(weights, dtype=dtype)
    for number in range(3):
        gradients = [gradient.to(dtype) for gradient in make_gradients(weights, number)[1:-1]]
        skip = found_inf if number == 1 else NO
        scale = torch.tensor(math.nan if skip else 2.5)
        for gradient in gradients:
            gradient *= math.nan if skip else 1.0
        seen._gather(gradients, skip, scale, may_read=True)
        unseen._gather(gradients, skip, scale, may_read=False)
    for one, other in zip(seen._momenta.values(), unseen._momenta.values(), strict=True):
        assert one.dtype == other.dtype == dtype
        assert one.any() and torch.allclose(one.float(), other.float(), atol=1e-6 if dtype == torch.float32 else 2e-3)


def test_gradients_may_have_any_strides() -> None:
    """A compiled step may return a transposed gradient, which the fused kernel would misread."""
    weights, others = make_weights(), make_weights()
    gradients = make_gradients(weights, 0)
    make_optimizer(weights).step(gradients, 0.01, found_inf=NO, grad_scale=ONE)
    turned = [gradient.T.contiguous().T if gradient.dim() == 2 else gradient for gradient in gradients]
    assert turned[0].stride() != gradients[0].stride()
    make_optimizer(others).step(turned, 0.01, found_inf=NO, grad_scale=ONE)
    assert all(torch.allclose(weights[name], others[name], atol=1e-6) for name in weights)


def test_a_mismatch_is_named() -> None:
    weights = make_weights()
    optimizer = make_optimizer(weights)
    optimizer.step(make_gradients(weights, 0), 0.01, found_inf=NO, grad_scale=ONE)
    sound = optimizer.state_dict()
    assert optimizer.misfit({**sound, "wide": {**sound["wide"], "momentum": torch.zeros(3)}}) == "momentum of wide"
    assert optimizer.misfit({**sound, "norm": {}}) == "exp_avg of norm"
    assert optimizer.misfit({**sound, "tall": {"momentum": sound["tall"]["momentum"]}}) == "step count of tall"


def test_the_half_life_of_the_second_moment_is_in_tokens() -> None:
    for length in (2, 129, 256, 4096):
        assert Recipe.for_width(64).beta2(length) ** (10e6 / (length - 1)) == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"half_life": 0.0}, {"half_life": 1e20}, {"beta1": 1.0}, {"momentum": -0.1}, {"matrix_rate": math.inf}]
)
def test_an_invalid_recipe_is_rejected(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Recipe(**{"matrix_rate": 1.0, **wrong})
