"""`MuonAdamW`: the optimizer for one document per step."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

Polynomial = tuple[float, float, float]
POLYNOMIALS: tuple[Polynomial, ...] = (
    (8.3837, -24.7659, 18.3571),
    (3.9690, -2.8424, 0.5167),
    (3.4626, -2.4982, 0.4802),
    (2.4910, -1.7800, 0.4060),
)
"""a, b, c of odd polynomials a x + b x^3 + c x^5 that, applied one after the other, map 0.003...1 to 0.78...1.22.

Each polynomial is the closest to 1 on the image of the one before, widened by 2 % for bf16 rounding. They were found
with the Remez algorithm (as in "The Polar Express", arXiv 2505.16932, on another interval). Five iterations of the
polynomial of Jordan et al. ("Muon", 2024) learn equally well and take a quarter longer (`docs/learning.md`).
"""
MARGIN = 1.05
"""Extra factor by which a matrix is scaled down: bf16 rounding must not push a singular value above 1, where the
polynomials diverge.
"""
MATRIX_RATE = 20.0
"""`Recipe.matrix_rate` times the square root of the width."""
_ADAMW, _MUON = ("exp_avg", "exp_avg_sq", "step"), ("momentum", "step")


@dataclass(frozen=True)
class Recipe:
    """The settings of the update. They are fixed for a run and stored in its checkpoints."""

    matrix_rate: float
    """Spectral norm of a matrix's step: this times the base learning rate, times sqrt(max(1, rows / columns))."""
    half_life: float = 10e6
    """Tokens after which the weight of a squared gradient in AdamW's second moment has halved."""
    beta1: float = 0.9
    """Decay of AdamW's first moment, per document."""
    momentum: float = 0.95
    """Decay of the momentum of the matrices, per document."""
    embedding_rate: float = 3.0
    """Learning rate of the embedding (also the output layer), as a multiple of the base learning rate."""
    norm_rate: float = 3.0
    """Learning rate of the norms' gains, as a multiple of the base learning rate."""

    def __post_init__(self) -> None:
        if not 0 < self.half_life <= 1e12 or not 0 <= self.beta1 < 1 or not 0 <= self.momentum < 1:
            raise ValueError("half_life must be above 0 and at most 1e12; beta1 and momentum at least 0 and below 1")
        if not all(math.isfinite(number) and number >= 0 for number in dataclasses.astuple(self)):
            raise ValueError("recipe values must be finite and at least 0")

    @classmethod
    def for_width(cls, width: int) -> "Recipe":
        """Return the recipe of a new run: the wider the model, the shorter the step of a matrix.

        The step scales with 1 / sqrt(width), so one base learning rate fits every size: measured at widths 64, 384 and,
        for 500 documents, 768 (`docs/learning.md`).
        """
        return cls(matrix_rate=MATRIX_RATE / math.sqrt(width))

    def beta2(self, max_seq_length: int) -> float:
        """Return the second moment's decay for steps of `max_seq_length - 1` predictions (arXiv 2507.07101, section 3).

        It is constant for a run, because the fused kernel corrects the bias with beta2 to the power of the step.
        """
        return math.exp2(-(max_seq_length - 1) / self.half_life)


def turn_interval(width: int) -> int:
    """Return the number of steps between two updates of a matrix: 16 for a width of 384. Each update is as many times
    longer.

    Orthogonalization takes about 20 x width operations per weight, a document of T tokens 6 x T. In turns it takes 480
    operations per weight at any width, a third of those for 255 tokens. The cost is what the momentum forgets between
    two turns: nothing measurable at 8 steps, 0.04 nats per token at 32 (`docs/learning.md`).
    """
    return max(1, width // 24)


def orthogonalize(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Return approximately the nearest matrix with orthonormal rows or columns: singular values of 0.78 to 1.22.

    Singular values below 1/300 of the fourth root of the sum of their fourth powers stay smaller, and zeros stay zeros.
    Uses Newton-Schulz iterations in `dtype` (Jordan et al., "Muon", 2024).

    Where possible, it works on the Gram matrix, whose size is the shorter side squared: for an elongated matrix, two
    polynomials at once. It recomputes the Gram matrix in between, because in bf16 the rounding of its large eigenvalues
    would swamp the small ones.

    Args:
        matrix: (M, N), any float dtype.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(dtype)
    gram = _gram(x, is_tall)
    # The root of the Gram matrix's norm bounds the singular values of `x`, and more tightly than the norm of `x`.
    # The last term prevents a tiny matrix, whose squares underflow, from being divided by too small a number.
    norm = MARGIN * torch.linalg.matrix_norm(gram.float()) + 1e-18
    x = _two_polynomials((x / norm.sqrt()).to(dtype), (gram / norm).to(dtype), *POLYNOMIALS[:2])
    return _two_polynomials(x, _gram(x, is_tall), *POLYNOMIALS[2:])


def _two_polynomials(x: Tensor, gram: Tensor, first: Polynomial, second: Polynomial) -> Tensor:
    """Apply two polynomials, one after the other, to a matrix with this Gram matrix."""
    is_tall = x.shape[0] > x.shape[1]
    factor = _factor(gram, first)
    if max(x.shape) >= 2 * min(x.shape):  # polynomials of one Gram matrix commute
        return _times(x, _factor(factor @ gram @ factor, second) @ factor, is_tall)
    x = _times(x, factor, is_tall)
    return _times(x, _factor(_gram(x, is_tall), second), is_tall)


def _gram(x: Tensor, is_tall: bool) -> Tensor:
    return x.T @ x if is_tall else x @ x.T


def _times(x: Tensor, factor: Tensor, is_tall: bool) -> Tensor:
    return x @ factor if is_tall else factor @ x


def _factor(gram: Tensor, polynomial: Polynomial) -> Tensor:
    """Return a + b G + c G^2, the factor by which a polynomial multiplies a matrix with the Gram matrix G."""
    a, b, c = polynomial
    factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal().add_(a)
    return factor


class MuonAdamW:
    """Optimizer of a model's fp32 weights: AdamW for embedding and norms, Muon for the matrices.

    AdamW runs at every step. The matrices take turns: at each step, a few of them get an orthogonalized update.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], recipe: Recipe, *, width: int, max_seq_length: int, dtype: torch.dtype
    ) -> None:
        """
        Args:
            weights: name → fp32 weight.
            width: width of the model.
            dtype: of the matrix products and of the matrices' momenta.
        """
        self.recipe = recipe
        self._weights = dict(weights)
        self.matrices = {name: w for name, w in weights.items() if w.dim() > 1 and "embed" not in name}
        """The weights with an orthogonalized update."""
        self._momenta = {name: torch.zeros_like(weight, dtype=dtype) for name, weight in self.matrices.items()}
        self._interval = turn_interval(width)
        self._dtype = dtype
        self.steps = 0
        """Number of steps so far, including skipped updates."""
        self._beta2 = recipe.beta2(max_seq_length)
        self._moments = {
            name: {
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
                "step": torch.zeros((), dtype=torch.float32, device=weight.device),
            }
            for name, weight in weights.items()
            if name not in self.matrices
        }

    @torch.no_grad()
    def step(
        self, gradients: Sequence[Tensor], learning_rate: float, *, found_inf: Tensor, grad_scale: Tensor
    ) -> list[str]:
        """Update the weights without waiting for the device. Return the names of the weights that may have changed.

        For AdamW, clipping and skipping cost nothing: the fused kernel divides each gradient by `grad_scale` as it
        reads it, and does nothing if `found_inf` is set.

        Args:
            gradients: one per weight, in the same order, in any float dtype.
            learning_rate: the base rate of this step.
            found_inf: () fp32, 1 to skip the update: neither weights nor moments change.
            grad_scale: () fp32, divides the gradients.
        """
        by_name = dict(zip(self._weights, gradients, strict=True))
        for dims, rate in ((2, self.recipe.embedding_rate), (1, self.recipe.norm_rate)):
            names = [name for name in self._moments if self._weights[name].dim() == dims]
            self._adamw(names, by_name, learning_rate * rate, found_inf, grad_scale)
        fresh = [by_name[name] for name in self._momenta]
        self._gather(fresh, found_inf, grad_scale, may_read=found_inf.device.type == "cpu")
        self.steps += 1
        moved = [*self._moments]
        reach = learning_rate * self.recipe.matrix_rate * self._interval
        for place, (name, weight) in enumerate(self.matrices.items()):
            if (self.steps + place) % self._interval == 0:
                rows, columns = weight.shape
                direction = orthogonalize(self._momenta[name], self._dtype)
                factor = (found_inf - 1.0) * (reach * math.sqrt(max(1.0, rows / columns)))
                weight.addcmul_(direction.to(weight.dtype), factor)
                moved.append(name)
        return moved

    def _adamw(
        self, names: Sequence[str], gradients: Mapping[str, Tensor], rate: float, found_inf: Tensor, grad_scale: Tensor
    ) -> None:
        """Update these weights with the fused AdamW kernel.

        Calls the function, not the class: the first step of a `torch.optim.Optimizer` imports the compiler, which takes
        a second.
        """
        weights = [self._weights[name] for name in names]
        moments = [self._moments[name] for name in names]
        adamw(
            weights,
            # The kernel requires gradients with the strides of the weights.
            [torch.empty_like(self._weights[name]).copy_(gradients[name]) for name in names],
            [kept["exp_avg"] for kept in moments],
            [kept["exp_avg_sq"] for kept in moments],
            [],
            [kept["step"] for kept in moments],
            fused=True,
            grad_scale=grad_scale,
            found_inf=found_inf,
            amsgrad=False,
            beta1=self.recipe.beta1,
            beta2=self._beta2,
            lr=rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )

    def _gather(self, gradients: list[Tensor], found_inf: Tensor, grad_scale: Tensor, *, may_read: bool) -> None:
        """Add the gradients to the momenta. `may_read`: reading a number back does not wait for the device."""
        momenta = list(self._momenta.values())
        decay = self.recipe.momentum
        if may_read:
            if not found_inf:
                share = (1 - decay) / float(grad_scale)
                for momentum, gradient in zip(momenta, gradients, strict=True):
                    # One tensor at a time: the momentum is still in the cache when the gradient is added.
                    momentum.mul_(decay).add_(gradient, alpha=share)
            return
        # In their dtype: with a scalar of another dtype, a GPU launches one kernel per tensor instead of one for all.
        fresh = torch._foreach_mul(gradients, ((1 - decay) / grad_scale).to(momenta[0].dtype))
        torch._foreach_add_(fresh, momenta, alpha=decay)
        skipped = found_inf.bool()
        for momentum, new in zip(momenta, fresh, strict=True):
            momentum.copy_(torch.where(skipped, momentum, new))

    def memory(self) -> Iterator[Tensor]:
        """Yield every tensor that is kept from step to step."""
        yield from self._momenta.values()
        for kept in self._moments.values():
            yield kept["exp_avg"]
            yield kept["exp_avg_sq"]

    def reset(self) -> None:
        """Reset moments and step count to zero."""
        for value in (*self._momenta.values(), *(value for kept in self._moments.values() for value in kept.values())):
            value.zero_()
        self.steps = 0

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Name → `momentum` and `step`, or AdamW's `exp_avg`, `exp_avg_sq` and `step`: not copies."""
        steps = torch.tensor(float(self.steps))
        return {
            name: {"momentum": self._momenta[name], "step": steps}
            if name in self._momenta
            else dict(self._moments[name])
            for name in self._weights
        }

    def misfit(self, state: Mapping[str, Any]) -> str:
        """Return the name of the first entry of a state that does not fit these weights, or ""."""
        for name, weight in self._weights.items():
            kept = state.get(name, {})
            for key in _MUON if name in self._momenta else _ADAMW:
                value, shape = kept.get(key), torch.Size() if key == "step" else weight.shape
                if not isinstance(value, Tensor) or value.shape != shape or not value.dtype.is_floating_point:
                    return f"{key.replace('step', 'step count')} of {name}"
        return ""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load moments and step count from a state without misfit. Rates and decays stay those of this recipe."""
        for name, momentum in self._momenta.items():
            momentum.copy_(state[name]["momentum"])
            self.steps = int(state[name]["step"])
        for name, moments in self._moments.items():
            for key, value in moments.items():
                value.copy_(state[name][key])
