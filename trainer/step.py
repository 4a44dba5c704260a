"""One sample → one optimizer step: forward, backward, judge, update. The hot path, the only place clever for speed."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from trainer.device import prepare_compiler
from trainer.model import LanguageModel
from trainer.objective import Judgement, NextToken
from trainer.optimizer import build_optimizer
from trainer.records import StepResult

MAX_GRADIENT_NORM = 1.0


def padded_lengths(max_seq_length: int) -> tuple[int, ...]:
    """The lengths that samples are padded to: multiples of 32 up to 128, then steps of at most a half.

    A fixed list keeps the choice of kernels, and so the last bits, independent of the order of lengths; with a compiled
    step there is one graph for each.
    """
    lengths = [32]
    while lengths[-1] < max_seq_length - 1:
        last = lengths[-1]
        lengths.append(last + max(32, 2 ** (last.bit_length() - 2)))
    return tuple(lengths)


class TrainingStep:
    """The model's weights, their fp32 masters, the optimizer, and the step that moves them."""

    def __init__(
        self,
        model: LanguageModel,
        *,
        dtype: torch.dtype,
        max_seq_length: int,
        compile: bool = False,
        objective: NextToken | None = None,
    ) -> None:
        """
        Args:
            model: on its device, with fp32 weights; it is cast to `dtype` here.
            dtype: of the weights that compute. In bf16 the fp32 masters stay beside them, because an update smaller
                than a weight's last bf16 bit would be lost.
            compile: one static graph for each padded length.
        """
        self.model = model
        self.lengths = padded_lengths(max_seq_length)
        self._objective = objective or NextToken()
        self.device = model.device
        self._names = [name for name, _ in model.named_parameters()]
        self._weights: list[torch.Tensor] = list(model.parameters())
        self._masters = self._weights
        if dtype != torch.float32:
            self._masters = [weight.detach().clone() for weight in self._weights]
            self._master_gradients = [torch.empty_like(master) for master in self._masters]
            for master, gradient in zip(self._masters, self._master_gradients, strict=True):
                master.grad = gradient
            model.to(dtype)
        self.optimizer = build_optimizer(self._masters)
        self._forward: Callable[[torch.Tensor, torch.Tensor], Judgement] = self._judge
        if compile:
            prepare_compiler(self.device, len(self.lengths))
            self._forward = torch.compile(self._judge, dynamic=False)

    def __call__(self, ids: Sequence[int], learning_rate: float) -> StepResult:
        """One step on one document.

        Args:
            ids: (T,) token ids, 2 <= T <= max_seq_length.
            learning_rate: of this step, for every parameter group.
        """
        judged = self._backward(ids)
        norm = self._update(learning_rate)
        count = len(ids) - 1
        # One transfer for all numbers: on a GPU each would be a wait of its own.
        numbers = torch.cat([judged.loss.detach().view(1), norm.view(1), judged.token_losses[:count]]).cpu().numpy()
        ranks = judged.token_ranks[:count].cpu().numpy()
        return StepResult(
            loss=float(numbers[0]),
            accuracy=float((ranks == 0).mean()),
            gradient_norm=float(numbers[1]),
            token_losses=numbers[2:],
            token_ranks=ranks,
            updated=math.isfinite(numbers[1]),
        )

    def trial_seconds(self, length: int) -> float:
        """Seconds of one step of `length` predictions, measured before any other.

        Nothing is learned from it: at rate zero an update leaves the weights as they are, and the moments are dropped.
        """
        ids = [0] * (length + 1)
        for _ in range(2):  # the first pays for allocations, and for compilation
            since = time.monotonic()
            self(ids, 0.0)
            seconds = time.monotonic() - since
        self.optimizer.state.clear()
        return seconds

    def state_dict(self) -> dict[str, Any]:
        """`model`: name → fp32 weight; `optimizer`: its moments and step counts."""
        return {
            "model": dict(zip(self._names, (master.detach() for master in self._masters), strict=True)),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for name, master in zip(self._names, self._masters, strict=True):
                master.copy_(state["model"][name])
            self._write_weights()
        self.optimizer.load_state_dict(state["optimizer"])

    def _judge(self, inputs: torch.Tensor, targets: torch.Tensor) -> Judgement:
        return self._objective.judge(self.model(inputs.unsqueeze(0))[0], targets)

    def _backward(self, ids: Sequence[int]) -> Judgement:
        """Gradients of the mean loss into the weights."""
        length = next(length for length in self.lengths if length >= len(ids) - 1)
        inputs, targets = self._objective.inputs_and_targets(ids, length)
        judged = self._forward(inputs.to(self.device), targets.to(self.device))
        judged.loss.backward()  # type: ignore[no-untyped-call]
        return judged

    @torch.no_grad()
    def _update(self, learning_rate: float) -> torch.Tensor:
        """Move the masters and write the weights. Returns the gradient's norm before clipping, () fp32.

        Clipping, and passing by a gradient that is not finite, ride on the fused kernel: it divides each
        gradient by `grad_scale` as it reads it, and does nothing where `found_inf` is set. No further pass over the
        weights, no wait for the device.
        """
        gradients = [weight.grad for weight in self._weights if weight.grad is not None]
        if self._masters is not self._weights:
            torch._foreach_copy_(self._master_gradients, gradients)
            gradients = self._master_gradients
        norm = torch.nn.utils.get_total_norm(gradients)
        self.optimizer.grad_scale = (norm / MAX_GRADIENT_NORM).clamp(min=1.0)  # type: ignore[attr-defined]
        self.optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self._write_weights()
        for weight in self._weights:
            weight.grad = None
        return norm

    def _write_weights(self) -> None:
        if self._masters is not self._weights:
            torch._foreach_copy_(self._weights, self._masters)
