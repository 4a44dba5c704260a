"""`MuonAdamW`: the update for a batch of one document."""

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
"""a, b, c of odd polynomials a x + b x^3 + c x^5 that, one after the other, take all of 0.003...1 to 0.78...1.22.

Each is the one nearest to 1 on what the one before leaves of that interval, and 2 % more for what bf16 adds, found by
Remez's exchange (as in "The Polar Express", arXiv 2505.16932, whose interval is another). Five times the polynomial of
Jordan et al. ("Muon", 2024) learns the same and takes a quarter longer (`docs/learning.md`).
"""
MARGIN = 1.05
"""By which a matrix is made smaller than its norm asks for: bf16 must not carry a singular value above 1, from where
the polynomials lead away.
"""
MATRIX_RATE = 20.0
"""`Recipe.matrix_rate` times the root of the width."""
_ADAMW, _MUON = ("exp_avg", "exp_avg_sq", "step"), ("momentum", "step")


@dataclass(frozen=True)
class Recipe:
    """What the update is made with; fixed for a run, and kept with its checkpoints."""

    matrix_rate: float
    """Spectral norm of a matrix's step: this times the base learning rate, times sqrt(max(1, rows / columns))."""
    half_life: float = 10e6
    """Tokens after which a squared gradient counts half in AdamW's second moment."""
    beta1: float = 0.9
    """Decay of AdamW's first moment, per document."""
    momentum: float = 0.95
    """Decay of the matrices' momentum, per document."""
    embedding_rate: float = 3.0
    """Rate of the embedding, which is also the output layer: this times the base learning rate."""
    norm_rate: float = 3.0
    """Rate of the gains of the norms, likewise."""

    def __post_init__(self) -> None:
        if not 0 < self.half_life <= 1e12 or not 0 <= self.beta1 < 1 or not 0 <= self.momentum < 1:
            raise ValueError("a half-life is above 0 and at most 1e12, a decay from 0 to below 1")
        if not all(math.isfinite(number) and number >= 0 for number in dataclasses.astuple(self)):
            raise ValueError("a number of the recipe is negative, or none")

    @classmethod
    def for_width(cls, width: int) -> "Recipe":
        """What a new run begins with: the wider the model, the shorter a matrix's step.

        By the root of the width, so that one base learning rate is right for every size: measured at widths of 64,
        384 and, for 500 documents, 768 (`docs/learning.md`).
        """
        return cls(matrix_rate=MATRIX_RATE / math.sqrt(width))

    def beta2(self, max_seq_length: int) -> float:
        """The second moment's decay for steps of `max_seq_length - 1` predictions (arXiv 2507.07101, section 3).

        One number for the run, because the fused kernel corrects the bias by beta2 to the power of the step.
        """
        return math.exp2(-(max_seq_length - 1) / self.half_life)


def turn_interval(width: int) -> int:
    """Steps between two turns of a matrix, each as many times as long: 16 for a width of 384.

    Orthogonalizing takes about 20 x width operations a weight, a document of T tokens 6 x T: in turns that is 480
    operations a weight at any width, a third of what 255 tokens take. What the momentum forgets between two
    turns is the price: nothing measurable at 8 steps, 0.04 nats per token at 32 (`docs/learning.md`).
    """
    return max(1, width // 24)


def orthogonalize(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest matrix with orthonormal rows or columns, about: singular values between 0.78 and 1.22.

    Those below a 300th of the fourth root of the sum of their fourth powers stay smaller. A matrix of zeros stays one.
    Newton-Schulz iterations in `dtype` (Jordan et al., "Muon", 2024).

    What can be done to the Gram matrix, which is only as large as the shorter side squared, is done there: for a long
    matrix two polynomials at once. Not all four: in bf16 the small eigenvalues of a Gram matrix drown in the rounding
    of the great ones, so it is made anew in between.

    Args:
        matrix: (M, N), any float dtype.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(dtype)
    gram = _gram(x, is_tall)
    # No singular value of `x` is above the root of its Gram matrix's norm, which is nearer to the largest than its own.
    # The last term keeps what is nearly nothing from being divided by less than it is, where its squares underflow.
    norm = MARGIN * torch.linalg.matrix_norm(gram.float()) + 1e-18
    x = _two_polynomials((x / norm.sqrt()).to(dtype), (gram / norm).to(dtype), *POLYNOMIALS[:2])
    return _two_polynomials(x, _gram(x, is_tall), *POLYNOMIALS[2:])


def _two_polynomials(x: Tensor, gram: Tensor, first: Polynomial, second: Polynomial) -> Tensor:
    """One after the other, of a matrix with this Gram matrix."""
    is_tall = x.shape[0] > x.shape[1]
    factor = _factor(gram, first)
    if max(x.shape) >= 2 * min(x.shape):  # what is made of one Gram matrix commutes
        return _times(x, _factor(factor @ gram @ factor, second) @ factor, is_tall)
    x = _times(x, factor, is_tall)
    return _times(x, _factor(_gram(x, is_tall), second), is_tall)


def _gram(x: Tensor, is_tall: bool) -> Tensor:
    return x.T @ x if is_tall else x @ x.T


def _times(x: Tensor, factor: Tensor, is_tall: bool) -> Tensor:
    return x @ factor if is_tall else factor @ x


def _factor(gram: Tensor, polynomial: Polynomial) -> Tensor:
    """a + b G + c G^2: what a polynomial multiplies a matrix by that has the Gram matrix G."""
    a, b, c = polynomial
    factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal().add_(a)
    return factor


class MuonAdamW:
    """AdamW for the embedding and the norms at every step; the matrices take turns at an orthogonalized one (Muon).

    The optimizer of a model's fp32 weights, by name.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], recipe: Recipe, *, width: int, max_seq_length: int, dtype: torch.dtype
    ) -> None:
        """
        Args:
            weights: name → fp32 weight.
            width: of the model.
            dtype: that the device multiplies matrices in, and that the matrices' momenta are kept in.
        """
        self.recipe = recipe
        self._weights = dict(weights)
        self.matrices = {name: w for name, w in weights.items() if w.dim() > 1 and "embed" not in name}
        """Those of the weights that are orthogonalized."""
        self._momenta = {name: torch.zeros_like(weight, dtype=dtype) for name, weight in self.matrices.items()}
        self._interval = turn_interval(width)
        self._dtype = dtype
        self.steps = 0
        """Taken so far, those included that moved nothing."""
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
        """Move weights by their gradients. Nobody waits for the device. Returns the names of those that may have moved.

        Clipping, and passing by a gradient, cost AdamW nothing: the fused kernel divides each gradient by `grad_scale`
        as it reads it, and does nothing where `found_inf` is set.

        Args:
            gradients: one for each weight, in their order, in any float dtype.
            learning_rate: the base rate of this step.
            found_inf: () fp32, 1 where nothing must move and nothing be remembered.
            grad_scale: () fp32, what the gradients are divided by.
        """
        by_name = dict(zip(self._weights, gradients, strict=True))
        for dims, rate in ((2, self.recipe.embedding_rate), (1, self.recipe.norm_rate)):
            names = [name for name in self._moments if self._weights[name].dim() == dims]
            self._adamw(names, by_name, learning_rate * rate, found_inf, grad_scale)
        fresh = [by_name[name] for name in self._momenta]
        self._gather(fresh, found_inf, grad_scale, may_look=found_inf.device.type == "cpu")
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
        """AdamW for these weights: the kernel that walks over them once.

        By its function: the first step of a `torch.optim.Optimizer` imports the compiler, which takes a second.
        """
        weights = [self._weights[name] for name in names]
        moments = [self._moments[name] for name in names]
        adamw(
            weights,
            # It asks for gradients with the weights' strides.
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

    def _gather(self, gradients: list[Tensor], found_inf: Tensor, grad_scale: Tensor, *, may_look: bool) -> None:
        """Let the gradients into the momenta. `may_look`: at numbers, where that waits for nobody."""
        momenta = list(self._momenta.values())
        decay = self.recipe.momentum
        if may_look:
            if not found_inf:
                share = (1 - decay) / float(grad_scale)
                for momentum, gradient in zip(momenta, gradients, strict=True):
                    # One after the other: it is still in the cache when the gradient comes.
                    momentum.mul_(decay).add_(gradient, alpha=share)
            return
        # In their dtype: with a scalar of another one, a GPU takes a kernel for each tensor instead of one for all.
        fresh = torch._foreach_mul(gradients, ((1 - decay) / grad_scale).to(momenta[0].dtype))
        torch._foreach_add_(fresh, momenta, alpha=decay)
        skipped = found_inf.bool()
        for momentum, new in zip(momenta, fresh, strict=True):
            momentum.copy_(torch.where(skipped, momentum, new))

    def memory(self) -> Iterator[Tensor]:
        """Every tensor that is remembered from step to step."""
        yield from self._momenta.values()
        for kept in self._moments.values():
            yield kept["exp_avg"]
            yield kept["exp_avg_sq"]

    def reset(self) -> None:
        """Begin again without memory."""
        for value in (*self._momenta.values(), *(value for kept in self._moments.values() for value in kept.values())):
            value.zero_()
        self.steps = 0

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Name → `momentum` and `step`, or AdamW's `exp_avg`, `exp_avg_sq` and `step`: the living tensors."""
        steps = torch.tensor(float(self.steps))
        return {
            name: {"momentum": self._momenta[name], "step": steps}
            if name in self._momenta
            else dict(self._moments[name])
            for name in self._weights
        }

    def misfit(self, state: Mapping[str, Any]) -> str:
        """The first thing in a state that does not fit these weights, or nothing."""
        for name, weight in self._weights.items():
            kept = state.get(name, {})
            for key in _MUON if name in self._momenta else _ADAMW:
                value, shape = kept.get(key), torch.Size() if key == "step" else weight.shape
                if not isinstance(value, Tensor) or value.shape != shape or not value.dtype.is_floating_point:
                    return f"{key.replace('step', 'step count')} of {name}"
        return ""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state without misfit. Only its numbers: rates and the like are this recipe's, whatever it says."""
        for name, momentum in self._momenta.items():
            momentum.copy_(state[name]["momentum"])
            self.steps = int(state[name]["step"])
        for name, moments in self._moments.items():
            for key, value in moments.items():
                value.copy_(state[name][key])
