"""One optimizer step on one sample: forward, backward, spike check, update. This is the hot path."""

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from trainer.errors import MachineError, UserError
from trainer.learning.compilation import compiler_settings
from trainer.learning.optimizer import MuonAdamW, Recipe
from trainer.learning.spike_detector import InstabilityDetector, Verdict, describe_faults
from trainer.learning.weight_average import AveragedWeights
from trainer.model.language_model import LanguageModel
from trainer.objectives.next_token import Judgement, NextToken
from trainer.records import StepResult


def padded_lengths(max_seq_length: int) -> tuple[int, ...]:
    """Return the lengths that samples are padded to: multiples of 32 up to 128, then growing by at most a half.

    With a fixed list, the choice of kernels, and so the last bits of a loss, does not depend on the order of documents.
    """
    lengths = [32]
    while lengths[-1] < max_seq_length - 1:
        last = lengths[-1]
        lengths.append(last + max(32, 2 ** (last.bit_length() - 2)))
    return tuple(lengths)


class TrainingStep:
    """A model with its fp32 master weights, optimizer and spike detector. Call it to train on one document."""

    def __init__(
        self,
        model: LanguageModel,
        *,
        dtype: torch.dtype,
        max_seq_length: int,
        objective: NextToken | None = None,
        detector: InstabilityDetector | None = None,
        recipe: Recipe | None = None,
    ) -> None:
        """
        Args:
            model: on its device, with fp32 weights; it is cast to `dtype` here.
            dtype: of the weights in the forward and backward pass. With bf16 there are also fp32 master weights,
                because bf16 can't represent small updates.
            recipe: settings of the update; a resumed run restores its own with `load_state_dict`.
        """
        self.model = model
        self.lengths = padded_lengths(max_seq_length)
        self._objective = objective or NextToken()
        self._detector = detector or InstabilityDetector()
        self.device = model.device
        model.rotary(self.lengths[-1])  # allocated now, so the memory layout does not depend on the first document
        self._names = [name for name, _ in model.named_parameters()]
        self._places = {name: place for place, name in enumerate(self._names)}
        self._weights: list[torch.Tensor] = list(model.parameters())
        self._masters = self._weights
        if dtype != torch.float32:
            self._masters = [weight.detach().clone() for weight in self._weights]
            model.to(dtype)
        joined = [
            (whole.requires_grad_(), [self._places[name] for name in names]) for whole, names in model.join_products()
        ]
        inside = {place for _, places in joined for place in places}
        alone = [(weight, [place]) for place, weight in enumerate(self._weights) if place not in inside]
        self._leaves: list[tuple[torch.Tensor, list[int]]] = [*joined, *alone]
        """The tensors with gradients, each with the indices of the weights that its rows are."""
        self._max_seq_length = max_seq_length
        self._dtype = dtype
        self.optimizer = self._make_optimizer(recipe or Recipe.for_width(model.shape.width))
        self._average = AveragedWeights(self._masters)
        self._averaged_model: LanguageModel | None = None
        self._averaged_is_current = False
        self._layers: Sequence[Callable[..., torch.Tensor]] = list(model.model.layers)
        self._judge_hidden: Callable[[torch.Tensor, torch.Tensor], Judgement] = self._judge

    def compile(self) -> None:
        """Compile the step: one graph for all layers and one for the loss, for documents of any length.

        Everything is compiled here, longest documents first, so no kernel depends on which document comes first.

        Raises:
            MachineError: the compiler failed. The step is then unchanged.
        """
        eager = self._layers, self._judge_hidden
        self._layers = [torch.compile(layer, dynamic=True) for layer in self.model.model.layers]
        self._judge_hidden = torch.compile(self._judge_hidden, dynamic=True)
        try:
            with compiler_settings(self.lengths[-1]):
                for length in reversed(self.lengths):
                    self._gradients([0] * (length + 1), length)
        except Exception as error:  # the compiler raises many kinds, and the eager step is known to work
            self._layers, self._judge_hidden = eager
            message = str(error).strip().partition("\n")[0]
            raise MachineError(f"the compiler failed ({type(error).__name__}: {message})") from error

    def __call__(self, ids: Sequence[int], learning_rate: float) -> StepResult:
        """Train on one document.

        Args:
            ids: (T,) token ids, 2 <= T <= max_seq_length.
            learning_rate: the base rate of this step.
        """
        count = len(ids) - 1
        length = next(length for length in self.lengths if length >= count)
        judged, gradients = self._gradients(ids, length)
        loss_before, norm_before = judged.loss.detach(), self._l2_norm(gradients)
        verdict = self._detector.check(length, judged.logits_are_finite, loss_before, norm_before)
        self._update(gradients, learning_rate, verdict)
        # One transfer for all numbers: on a GPU, each separate one would wait.
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
            fault=describe_faults(faults, loss, norm, medians),
        )

    def trial_seconds(self, length: int) -> float:
        """Measure the seconds of one step of `length` predictions, the faster of two. Call before the first step.

        It changes nothing: at learning rate zero the weights stay, and moments and history are reset.
        """
        ids, seconds = [0] * (length + 1), []
        for _ in range(3):  # the first one includes allocations
            since = time.monotonic()
            self(ids, 0.0)
            seconds.append(time.monotonic() - since)
        self.optimizer.reset()
        self._detector.reset()
        self._average.copy_from(self._masters)
        return min(seconds[1:])

    @torch.no_grad()
    def averaged(self) -> LanguageModel:
        """Return the model for evaluation and generation: a copy with the current averaged weights."""
        if self._averaged_model is None:
            self._averaged_model = copy.deepcopy(self.model).requires_grad_(False)
            self._averaged_model.join_products()  # copying has separated them
        if not self._averaged_is_current:
            torch._foreach_copy_(list(self._averaged_model.parameters()), self._average.weights)
            self._averaged_is_current = True
        return self._averaged_model

    def is_finite(self) -> bool:
        """Return whether all weights, averages and moments are finite. Waits for the device."""
        kept = [*self._masters, *self.optimizer.memory(), *self._average.weights]
        greatest = torch._foreach_norm(kept, float("inf"))
        return bool(torch.isfinite(torch.stack(greatest)).all())

    def state_dict(self) -> dict[str, Any]:
        """Return `model`: name → fp32 weight; `average`: name → its average; `optimizer`: name → momentum or moments,
        and step count; `recipe`: the settings of the update; `stability`: the spike detector's history.

        The tensors are not copies: clone them to keep them.
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
        """Restore a state from `state_dict`.

        Raises:
            UserError: weights, moments or the detector's history do not fit this model. Nothing changes then.
        """
        fault = self._misfit(state)
        if fault:
            raise UserError(f"the checkpoint does not fit this model: {fault} is missing or invalid")
        self._detector.load_state_dict(state["stability"], self.device)
        with torch.no_grad():
            for name, master in zip(self._names, self._masters, strict=True):
                master.copy_(state["model"][name])
            self._write_weights(self._names)
        self.optimizer = self._make_optimizer(Recipe(**state["recipe"]))
        self.optimizer.load_state_dict(state["optimizer"])
        self._average.copy_from([state["average"][name] for name in self._names])
        self._averaged_is_current = False

    def _misfit(self, state: Mapping[str, Any]) -> str:
        """Return the name of the first entry of a state that does not fit, or ""."""
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
            return "the recipe"
        return self.optimizer.misfit(state["optimizer"])

    def _judge(self, hidden: torch.Tensor, targets: torch.Tensor) -> Judgement:
        return self._objective.judge(self.model.logits(hidden), targets)

    def _gradients(self, ids: Sequence[int], length: int) -> tuple[Judgement, list[torch.Tensor]]:
        """Return the judgement of a sample padded to `length` predictions, and the gradients of its mean loss."""
        inputs, targets = self._objective.inputs_and_targets(ids, length)
        # Copied now: a later copy to a GPU would wait for the queued forward pass.
        on_cpu = (inputs, targets, *torch.unique(inputs, return_inverse=True))
        inputs, targets, tokens, places = (tensor.to(self.device) for tensor in on_cpu)
        embedded = self.model.embed(inputs.unsqueeze(0)).detach().requires_grad_()
        judged = self._judge_hidden(self.model.hidden_from(embedded, self._layers)[0], targets)
        *found, of_rows = torch.autograd.grad(judged.loss, [*(leaf for leaf, _ in self._leaves), embedded])
        of_place: dict[int, torch.Tensor] = {}
        for gradient, (_, inside) in zip(found, self._leaves, strict=True):
            rows = torch.split(gradient, [len(self._weights[place]) for place in inside])
            of_place.update(zip(inside, rows, strict=True))
        gradients = [of_place[place] for place in range(len(self._weights))]
        self._add_rows(gradients[self._places["model.embed_tokens.weight"]], tokens, places, of_rows[0])
        return judged, gradients

    @staticmethod
    @torch.no_grad()
    def _add_rows(gradient: torch.Tensor, tokens: torch.Tensor, places: torch.Tensor, of_rows: torch.Tensor) -> None:
        """Add the gradients of the T embedded tokens to that of the output layer, which shares the weights.

        Autograd would allocate a gradient for all V rows. Compiled, it would add repeated tokens in thread order, which
        varies.

        Args:
            gradient: (V, width), changed in place.
            tokens: (N,) the distinct tokens.
            places: (T,) index into `tokens` for each of the T tokens.
            of_rows: (T, width).
        """
        sums = gradient[tokens].float().index_add_(0, places, of_rows.float())
        gradient[tokens] = sums.to(gradient.dtype)

    @staticmethod
    def _l2_norm(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the L2 norm of all gradients together, () fp32.

        The norm of each row comes first, because torch computes a norm over everything in one thread. It is in the
        gradient's dtype, because another one would need a copy. In bf16 this rounds each row's norm by about 0.1 %. For
        N similar rows, the relative error of the total is 0.0023 / sqrt(N), for a model less than 1e-4.
        """
        rows = [torch.linalg.vector_norm(gradient, dim=-1).flatten() for gradient in gradients]
        norm: torch.Tensor = torch.linalg.vector_norm(torch.cat(rows), dtype=torch.float32)
        return norm

    @torch.no_grad()
    def _update(self, gradients: Sequence[torch.Tensor], learning_rate: float, verdict: Verdict) -> None:
        """Update the master weights as the verdict allows, and copy the changed ones to the model."""
        moved = self.optimizer.step(
            gradients, learning_rate, found_inf=verdict.found_inf, grad_scale=verdict.grad_scale
        )
        self._write_weights(moved)
        self._average.follow(self._masters, self.optimizer.steps)
        self._averaged_is_current = False

    def _make_optimizer(self, recipe: Recipe) -> MuonAdamW:
        return MuonAdamW(
            dict(zip(self._names, self._masters, strict=True)),
            recipe,
            width=self.model.shape.width,
            max_seq_length=self._max_seq_length,
            dtype=self._dtype,
        )

    def _write_weights(self, names: Sequence[str]) -> None:
        if self._masters is not self._weights:
            places = [self._places[name] for name in names]
            torch._foreach_copy_([self._weights[p] for p in places], [self._masters[p] for p in places])
