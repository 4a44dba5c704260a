"""Spikes and divergence: `InstabilityDetector` checks every step, `Health` decides when the run has diverged."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainer.errors import Diverged, UserError
from trainer.records import Sample, StepResult

LEAST_HISTORY = 16
"""Documents that a length class needs before its median is used."""
LOSS_SPIKE = 3.0
"""Nats per token above the median: three times the spread of single documents (about 1 nat, measured)."""
NORM_SPIKE = 3.0
"""Times the median: two documents in a thousand of a healthy run exceed it (measured)."""
CHECK_INTERVAL = 100
"""Steps between two checks of all weights. A check waits for the device."""
STUCK_AFTER = 20
"""Non-finite steps in a row after which the weights, not the documents, are the likely cause."""
MAX_ROLL_BACKS = 3


class Verdict(NamedTuple):
    """What to do with a gradient. Tensors (float32), so that no decision waits for the device."""

    found_inf: Tensor
    """(): 1 where the update must not happen (the fused optimizer's own argument)."""
    grad_scale: Tensor
    """(): divides the gradient (likewise)."""
    faults: Tensor
    """(5,) 1 or 0: logits, loss or gradient not finite; loss spike; gradient norm spike."""
    medians: Tensor
    """(2,) of loss and norm in the length class before this step; NaN where the history is too short."""


class InstabilityDetector:
    """Check logits, loss and gradient of each step: are they finite, and how far are they above the running medians?

    Each length class (padded length) has its own medians, because short documents have larger gradients. Non-finite
    values never enter the history. Spikes do, so after a permanent change the medians adapt within half a window.
    """

    def __init__(self, window: int = 128, *, spike: str = "clip", max_gradient_norm: float = 1.0) -> None:
        """
        Args:
            window: documents of a length class that its medians cover.
            spike: what happens on a finite spike. `clip`: limit the norm to min(max_gradient_norm, 3 x the median);
                `skip`: no update; `keep`: clip to max_gradient_norm as for any other document.
            max_gradient_norm: L2 norm that every gradient is clipped to.
        """
        self._window = window
        self._spike = spike
        self._max_gradient_norm = max_gradient_norm
        self._history: dict[int, Tensor] = {}
        """Length → (2, window) float32: losses and norms, NaN where there is none."""
        self._counts: dict[int, int] = {}

    @torch.no_grad()
    def check(self, length: int, logits_are_finite: Tensor, loss: Tensor, norm: Tensor) -> Verdict:
        """Return the verdict on one step, then add its numbers to the history.

        Args:
            length: padded length of the sample.
            logits_are_finite: () bool.
            loss: () float32, nats per token.
            norm: () float32, L2 norm of the gradient over all parameters.
        """
        if length not in self._history:
            self._history[length] = torch.full((2, self._window), math.nan, device=norm.device)
            self._counts[length] = 0
        history, count = self._history[length], self._counts[length]
        if count >= LEAST_HISTORY:
            # The lower median of all values but NaN, which sorts last. `nanmedian` would wait for a GPU.
            middle = (history.isfinite().sum(1, keepdim=True) - 1).clamp(min=0) // 2
            medians = history.sort(dim=1).values.gather(1, middle).squeeze(1)
        else:
            medians = torch.full((2,), math.nan, device=norm.device)
        finite = torch.stack([logits_are_finite, torch.isfinite(loss), torch.isfinite(norm)])
        # Comparing with the NaN of a missing median is false: without history there is no spike.
        spikes = torch.stack([loss > medians[0] + LOSS_SPIKE, norm > NORM_SPIKE * medians[1]]) & finite.all()
        must_skip = ~finite.all()
        limit = torch.full_like(norm, self._max_gradient_norm)
        if self._spike == "skip":
            must_skip = must_skip | spikes.any()
        elif self._spike == "clip":
            # A median of 0 (memorized documents) must not limit every later gradient to 0.
            limit = torch.where(medians[1] > 0, torch.fmin(limit, NORM_SPIKE * medians[1]), limit)
        history[:, count % self._window] = torch.stack([loss, norm]).where(finite.all(), math.nan)
        self._counts[length] = count + 1
        return Verdict(must_skip.float(), (norm / limit).clamp(min=1.0), torch.cat([~finite, spikes]).float(), medians)

    def reset(self) -> None:
        """Drop the history."""
        self._history.clear()
        self._counts.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"history": dict(self._history), "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Load a history from `state_dict`.

        Raises:
            UserError: the history has another window.
        """
        history, counts = state["history"], state["counts"]
        if history.keys() != counts.keys() or any(rows.shape != (2, self._window) for rows in history.values()):
            raise UserError(
                "the checkpoint's history of losses and gradient norms does not fit this version: "
                "resume from another checkpoint"
            )
        self._history = {length: rows.to(device, torch.float32, copy=True) for length, rows in history.items()}
        self._counts = dict(counts)


def describe_faults(faults: Sequence[float], loss: float, norm: float, medians: Sequence[float]) -> str:
    """Describe the faults of a verdict in words; "" if there are none."""
    words = (
        "logits not finite",
        "loss not finite",
        "gradient not finite",
        f"loss {loss:.2f} (median {medians[0]:.2f})",
        f"gradient norm {norm:.3g} (median {medians[1]:.3g})",
    )
    return ", ".join(word for fault, word in zip(faults, words, strict=True) if fault)


class Health:
    """Counts failed steps and rollbacks. The trainer asks it whether the run has diverged, and acts."""

    def __init__(self) -> None:
        self.last_update: dict[str, Any] | None = None
        """The document of the last update: `step`, `cursor` (the position after it), `where` (shard and row)."""
        self.failures_in_a_row = 0
        self.roll_backs = 0

    def note(self, step: int, sample: Sample, result: StepResult) -> None:
        """Count one step."""
        self.failures_in_a_row = 0 if result.finite else self.failures_in_a_row + 1
        if result.updated:
            cursor = sample.document.cursor
            after = [cursor.epoch, cursor.shard, cursor.row]
            self.last_update = {"step": step, "cursor": after, "where": sample.where}

    @property
    def is_stuck(self) -> bool:
        return self.failures_in_a_row >= STUCK_AFTER

    def check(self, weights_are_finite: bool, documents: int) -> None:
        """Check the run after `documents` documents.

        Raises:
            Diverged: weights or moments are not finite, or the last `STUCK_AFTER` steps were not.
        """
        if not weights_are_finite:
            raise Diverged(f"after {documents:,} documents the weights are no longer finite")
        if self.is_stuck:
            raise Diverged(f"the last {self.failures_in_a_row} steps gave no finite numbers")

    def state_dict(self) -> dict[str, Any]:
        return {
            "last_update": self.last_update,
            "failures_in_a_row": self.failures_in_a_row,
            "roll_backs": self.roll_backs,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.last_update = state["last_update"]
        self.failures_in_a_row = state["failures_in_a_row"]
        self.roll_backs = state["roll_backs"]
