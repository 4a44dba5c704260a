"""One sample → one optimizer step: forward, backward, judge, update. The hot path, the only place clever for speed."""

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from trainer.average import AveragedWeights
from trainer.device import prepare_compiler
from trainer.errors import UserError
from trainer.model import LanguageModel
from trainer.objective import Judgement, NextToken
from trainer.optimizer import MuonAdamW, Recipe
from trainer.records import StepResult
from trainer.stability import InstabilityDetector, Verdict, words_of


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
    """The model's weights, their fp32 masters, the optimizer, the judge, and the step that moves the weights."""

    def __init__(
        self,
        model: LanguageModel,
        *,
        dtype: torch.dtype,
        max_seq_length: int,
        compile: bool = False,
        objective: NextToken | None = None,
        detector: InstabilityDetector | None = None,
        recipe: Recipe | None = None,
    ) -> None:
        """
        Args:
            model: on its device, with fp32 weights; it is cast to `dtype` here.
            dtype: of the weights that compute. In bf16 the fp32 masters stay beside them, because an update smaller
                than a weight's last bf16 bit would be lost.
            compile: one static graph for each padded length.
            recipe: of the update; a resumed run brings its own along.
        """
        self.model = model
        self.lengths = padded_lengths(max_seq_length)
        self._objective = objective or NextToken()
        self._detector = detector or InstabilityDetector()
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
        self._max_seq_length = max_seq_length
        self._dtype = dtype
        self.optimizer = self._make_optimizer(recipe or Recipe())
        self._average = AveragedWeights(self._masters)
        self._averaged_model: LanguageModel | None = None
        self._averaged_is_current = False
        self._forward: Callable[[torch.Tensor, torch.Tensor], Judgement] = self._judge
        if compile:
            prepare_compiler(self.device, len(self.lengths))
            self._forward = torch.compile(self._judge, dynamic=False)

    def __call__(self, ids: Sequence[int], learning_rate: float) -> StepResult:
        """One step on one document.

        Args:
            ids: (T,) token ids, 2 <= T <= max_seq_length.
            learning_rate: the base rate of this step.
        """
        count = len(ids) - 1
        length = next(length for length in self.lengths if length >= count)
        judged = self._backward(ids, length)
        loss_before, norm_before = judged.loss.detach(), self._gradient_norm()
        verdict = self._detector.judge(length, judged.logits_are_finite, loss_before, norm_before)
        self._update(learning_rate, verdict)
        # One transfer for all numbers: on a GPU each would be a wait of its own.
        scalars = torch.stack([loss_before, norm_before, verdict.found_inf])
        found = torch.cat([scalars, verdict.medians, verdict.faults, judged.token_losses[:count]]).cpu().numpy()
        ranks = judged.token_ranks[:count].cpu().numpy()
        loss, norm, skipped, *medians = map(float, found[:5])
        faults = found[5:10] != 0
        return StepResult(
            loss=loss,
            accuracy=float("nan") if faults[0] else float((ranks == 0).mean()),
            gradient_norm=norm,
            token_losses=found[10:],
            token_ranks=None if faults[0] else ranks,
            finite=not faults[:3].any(),
            updated=not skipped,
            fault=words_of(faults, loss, norm, medians),
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
        self.optimizer.forget()
        self._detector.forget()
        self._average.take(self._masters)
        return seconds

    @torch.no_grad()
    def averaged(self) -> LanguageModel:
        """The model to look at, evaluate and let write: a copy with the averaged weights as of now."""
        if self._averaged_model is None:
            self._averaged_model = copy.deepcopy(self.model).requires_grad_(False)
        if not self._averaged_is_current:
            torch._foreach_copy_(list(self._averaged_model.parameters()), self._average.weights)
            self._averaged_is_current = True
        return self._averaged_model

    def is_finite(self) -> bool:
        """Whether all weights and moments are finite numbers. Waits for the device."""
        kept = [*self._masters, *self.optimizer.memory(), *self._average.weights]
        greatest = torch._foreach_norm(kept, float("inf"))
        return bool(torch.isfinite(torch.stack(greatest)).all())

    def state_dict(self) -> dict[str, Any]:
        """`model`: name → fp32 weight; `average`: name → its average; `optimizer`: name → its moments and step count;
        `recipe`: what the update is made with; `stability`: the judge's memory.

        The tensors are the living ones: whoever keeps them clones them.
        """
        weights = {name: master.detach() for name, master in zip(self._names, self._masters, strict=True)}
        return {
            "model": weights,
            "average": dict(zip(self._names, self._average.weights, strict=True)),
            "optimizer": self.optimizer.state_dict(),
            "recipe": dataclasses.asdict(self.optimizer.recipe),
            "stability": self._detector.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state` was saved.

        Raises:
            UserError: weights, moments or the judge's memory are not those of this model. Nothing has changed then.
        """
        fault = self._misfit(state)
        if fault:
            raise UserError(f"the checkpoint is not one of this model: {fault}")
        self._detector.load_state_dict(state["stability"], self.device)
        with torch.no_grad():
            for name, master in zip(self._names, self._masters, strict=True):
                master.copy_(state["model"][name])
            self._write_weights()
        self.optimizer = self._make_optimizer(Recipe(**state["recipe"]))
        self.optimizer.load_state_dict(state["optimizer"])
        self._average.take([state["average"][name] for name in self._names])
        self._averaged_is_current = False

    def _misfit(self, state: Mapping[str, Any]) -> str:
        """The first thing in a state that does not fit, or nothing."""
        for part in ("model", "average", "optimizer"):
            if wrong := sorted(state[part].keys() ^ set(self._names)):
                return f"{part} of {wrong[0]}"
        for name, master in zip(self._names, self._masters, strict=True):
            for part in ("model", "average"):
                value = state[part][name]
                if value.shape != master.shape or not value.dtype.is_floating_point:
                    return f"{part} of {name}"
        try:
            Recipe(**state["recipe"])
        except (TypeError, ValueError):
            return "recipe"
        return self.optimizer.misfit(state["optimizer"])

    def _judge(self, inputs: torch.Tensor, targets: torch.Tensor) -> Judgement:
        return self._objective.judge(self.model(inputs.unsqueeze(0))[0], targets)

    def _backward(self, ids: Sequence[int], length: int) -> Judgement:
        """Gradients of the mean loss, over a sample padded to `length` predictions, into the weights."""
        inputs, targets = self._objective.inputs_and_targets(ids, length)
        judged = self._forward(inputs.to(self.device), targets.to(self.device))
        judged.loss.backward()  # type: ignore[no-untyped-call]
        return judged

    @torch.no_grad()
    def _gradient_norm(self) -> torch.Tensor:
        """Hand the gradients to the masters. Returns their L2 norm before clipping, () fp32."""
        gradients = [weight.grad for weight in self._weights if weight.grad is not None]
        if self._masters is not self._weights:
            torch._foreach_copy_(self._master_gradients, gradients)
            gradients = self._master_gradients
        return torch.nn.utils.get_total_norm(gradients)

    @torch.no_grad()
    def _update(self, learning_rate: float, verdict: Verdict) -> None:
        """Move the masters as far as the verdict lets them, and write the weights."""
        self.optimizer.step(learning_rate, found_inf=verdict.found_inf, grad_scale=verdict.grad_scale)
        self._write_weights()
        self._average.follow(self._masters, self.optimizer.steps)
        self._averaged_is_current = False
        for weight in self._weights:
            weight.grad = None

    def _make_optimizer(self, recipe: Recipe) -> MuonAdamW:
        return MuonAdamW(
            dict(zip(self._names, self._masters, strict=True)),
            recipe,
            width=self.model.shape.width,
            max_seq_length=self._max_seq_length,
            dtype=self._dtype,
        )

    def _write_weights(self) -> None:
        if self._masters is not self._weights:
            torch._foreach_copy_(self._weights, self._masters)
