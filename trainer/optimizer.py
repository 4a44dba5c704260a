"""`MuonAdamW`: the update for a batch of one document."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the odd polynomial that drives singular values of 0...1 towards 1 (Jordan et al., "Muon", 2024)."""
ITERATIONS = 5
_ADAMW, _MUON = ("exp_avg", "exp_avg_sq", "step"), ("momentum", "step")


@dataclass(frozen=True)
class Recipe:
    """What the update is made with; fixed for a run, and kept with its checkpoints."""

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
    matrix_rate: float = 3.0
    """Spectral norm of a matrix's step, likewise, as a share of sqrt(max(1, rows / columns))."""

    def __post_init__(self) -> None:
        if not 0 < self.half_life <= 1e12 or not 0 <= self.beta1 < 1 or not 0 <= self.momentum < 1:
            raise ValueError("a half-life is above 0 and at most 1e12, a decay from 0 to below 1")
        if not all(math.isfinite(number) and number >= 0 for number in dataclasses.astuple(self)):
            raise ValueError("a number of the recipe is negative, or none")

    def beta2(self, max_seq_length: int) -> float:
        """The second moment's decay for steps of `max_seq_length - 1` predictions (arXiv 2507.07101, section 3).

        One number for the run, because the fused kernel corrects the bias by beta2 to the power of the step.
        """
        return math.exp2(-(max_seq_length - 1) / self.half_life)


def turn_interval(width: int) -> int:
    """Steps between two turns of a matrix, each as many times as long: 16 for a width of 384.

    Orthogonalizing takes about 25 x width operations a weight, a document of T tokens 6 x T: in turns that is 600
    operations a weight at any width, less than half of what 255 tokens take. What the momentum forgets between two
    turns is the price: nothing measurable at 8 steps, 0.04 nats per token at 32 (`docs/learning.md`).
    """
    return max(1, width // 24)


def orthogonalize(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest matrix with orthonormal rows or columns, about: singular values between 0.7 and 1.2.

    Five Newton-Schulz iterations in `dtype` (Jordan et al., "Muon", 2024). A matrix of zeros stays one.

    Args:
        matrix: (M, N) fp32.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = (x / (torch.linalg.matrix_norm(x) + 1e-12)).to(dtype)
    a, b, c = NEWTON_SCHULZ
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


class MuonAdamW:
    """AdamW for the embedding and the norms at every step; the matrices take turns at an orthogonalized one (Muon).

    The optimizer of a model's fp32 weights, by name.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], recipe: Recipe, *, width: int, max_seq_length: int, dtype: torch.dtype
    ) -> None:
        """
        Args:
            weights: name → fp32 weight, whose `grad` is its gradient at each step.
            width: of the model.
            dtype: that the device multiplies matrices in.
        """
        self.recipe = recipe
        self._weights = dict(weights)
        self._matrices = {name: w for name, w in weights.items() if w.dim() > 1 and "embed" not in name}
        self._momenta = {name: torch.zeros_like(weight) for name, weight in self._matrices.items()}
        self._interval = turn_interval(width)
        self._dtype = dtype
        self.steps = 0
        """Taken so far, those included that moved nothing."""
        norms = [weight for weight in weights.values() if weight.dim() == 1]
        embeddings = [w for name, w in weights.items() if w.dim() > 1 and name not in self._matrices]
        # `fused` walks over the weights once, and takes `grad_scale` and `found_inf`.
        self._adamw = torch.optim.AdamW(
            [
                {"params": embeddings, "rate": recipe.embedding_rate},
                {"params": norms, "rate": recipe.norm_rate},
            ],
            lr=0.0,
            betas=(recipe.beta1, recipe.beta2(max_seq_length)),
            eps=1e-8,
            weight_decay=0.0,
            fused=True,
        )

    @torch.no_grad()
    def step(self, learning_rate: float, *, found_inf: Tensor, grad_scale: Tensor) -> None:
        """Move the weights by their gradients. Nobody waits for the device.

        Clipping, and passing by a gradient, cost AdamW nothing: the fused kernel divides each gradient by `grad_scale`
        as it reads it, and does nothing where `found_inf` is set.

        Args:
            learning_rate: the base rate of this step.
            found_inf: () fp32, 1 where nothing must move and nothing be remembered.
            grad_scale: () fp32, what the gradients are divided by.
        """
        self._adamw.grad_scale = grad_scale  # type: ignore[attr-defined]
        self._adamw.found_inf = found_inf  # type: ignore[attr-defined]
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate * group["rate"]
        self._adamw.step()
        self._gather(found_inf, grad_scale, may_look=found_inf.device.type == "cpu")
        self.steps += 1
        reach = learning_rate * self.recipe.matrix_rate * self._interval
        for place, (name, weight) in enumerate(self._matrices.items()):
            if (self.steps + place) % self._interval == 0:
                rows, columns = weight.shape
                direction = orthogonalize(self._momenta[name], self._dtype)
                factor = (found_inf - 1.0) * (reach * math.sqrt(max(1.0, rows / columns)))
                weight.addcmul_(direction.to(weight.dtype), factor)

    def _gather(self, found_inf: Tensor, grad_scale: Tensor, *, may_look: bool) -> None:
        """Let the gradients into the momenta. `may_look`: at numbers, where that waits for nobody."""
        momenta = list(self._momenta.values())
        gradients = [weight.grad for weight in self._matrices.values() if weight.grad is not None]
        decay = self.recipe.momentum
        if may_look:
            if not found_inf:
                torch._foreach_mul_(momenta, decay)
                torch._foreach_add_(momenta, gradients, alpha=(1 - decay) / float(grad_scale))
            return
        fresh = torch._foreach_mul(gradients, (1 - decay) / grad_scale)
        torch._foreach_add_(fresh, momenta, alpha=decay)
        skipped = found_inf.bool()
        for momentum, new in zip(momenta, fresh, strict=True):
            momentum.copy_(torch.where(skipped, momentum, new))

    def memory(self) -> Iterator[Tensor]:
        """Every tensor that is remembered from step to step."""
        yield from self._momenta.values()
        for state in self._adamw.state.values():
            yield state["exp_avg"]
            yield state["exp_avg_sq"]

    def forget(self) -> None:
        """Begin again without memory."""
        self._adamw.state.clear()
        for momentum in self._momenta.values():
            momentum.zero_()
        self.steps = 0

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Name → `momentum` and `step`, or AdamW's `exp_avg`, `exp_avg_sq` and `step`: the living tensors."""
        steps = torch.tensor(float(self.steps))
        return {
            name: {"momentum": self._momenta[name], "step": steps}
            if name in self._momenta
            else dict(self._adamw.state.get(weight, {}))
            for name, weight in self._weights.items()
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
        self.forget()
        for name, weight in self._weights.items():
            kept = state[name]
            if name in self._momenta:
                self._momenta[name].copy_(kept["momentum"])
                self.steps = int(kept["step"])
            else:
                moments = {key: kept[key].to(weight.device, torch.float32, copy=True) for key in _ADAMW}
                self._adamw.state[weight] = moments
