"""`InstabilityDetector`: the numbers of a step in, a verdict out, on the device and before the update."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainer.errors import Diverged, UserError
from trainer.records import Sample, StepResult

LEAST_HISTORY = 16
"""Documents of a length class before its median means something."""
LOSS_SPIKE = 3.0
"""Nats per token above the median: three times the spread of single documents (about 1 nat, measured)."""
NORM_SPIKE = 3.0
"""Times the median: two documents in a thousand of a sound run lie above it (measured)."""


class Verdict(NamedTuple):
    """What to do with a gradient. Tensors, so that nobody waits for the device; all float32."""

    found_inf: Tensor
    """(): 1 where the update must not happen (the fused optimizer's own argument)."""
    grad_scale: Tensor
    """(): what the gradient is divided by (likewise)."""
    faults: Tensor
    """(5,) 1 or 0: logits, loss, gradient not finite; the loss, the gradient's norm is a spike."""
    medians: Tensor
    """(2,) of loss and norm in the length class before this step; NaN where there are none yet."""


class InstabilityDetector:
    """Judges logits, loss and gradient of each step: finite or not, and against the medians of the documents before.

    A running median for each length class (the padded length), because short documents have larger gradients. What is
    not finite never enters it; a spike does, so that a change for good becomes the rule after half a window.
    """

    def __init__(self, window: int = 128, *, spike: str = "clip", max_gradient_norm: float = 1.0) -> None:
        """
        Args:
            window: documents of a length class that its medians are taken over.
            spike: what becomes of a finite spike. `clip`: the norm is held to min(max_gradient_norm, 3 x the median);
                `skip`: no update; `keep`: clipped to max_gradient_norm like any other.
            max_gradient_norm: L2 norm that every gradient is clipped to.
        """
        self._window = window
        self._spike = spike
        self._max_gradient_norm = max_gradient_norm
        self._history: dict[int, Tensor] = {}
        """Length → (2, window) float32: losses and norms, NaN where there is none."""
        self._counts: dict[int, int] = {}

    @torch.no_grad()
    def judge(self, length: int, logits_are_finite: Tensor, loss: Tensor, norm: Tensor) -> Verdict:
        """The verdict on one step; its numbers join the history.

        Args:
            length: of the sample as it was padded.
            logits_are_finite: () bool.
            loss: () float32, nats per token.
            norm: () float32, L2 norm of the gradient over all parameters.
        """
        if length not in self._history:
            self._history[length] = torch.full((2, self._window), math.nan, device=norm.device)
            self._counts[length] = 0
        history, count = self._history[length], self._counts[length]
        if count >= LEAST_HISTORY:
            # The lower median of what is not NaN, which sorts last. Not by `nanmedian`: on a GPU it waits.
            middle = (history.isfinite().sum(1, keepdim=True) - 1).clamp(min=0) // 2
            medians = history.sort(dim=1).values.gather(1, middle).squeeze(1)
        else:
            medians = torch.full((2,), math.nan, device=norm.device)
        finite = torch.stack([logits_are_finite, torch.isfinite(loss), torch.isfinite(norm)])
        # A comparison with the NaN of a missing median is false: no history, no spike.
        spikes = torch.stack([loss > medians[0] + LOSS_SPIKE, norm > NORM_SPIKE * medians[1]]) & finite.all()
        must_skip = ~finite.all()
        limit = torch.full_like(norm, self._max_gradient_norm)
        if self._spike == "skip":
            must_skip = must_skip | spikes.any()
        elif self._spike == "clip":
            # No gradient at all as the rule (all learned by heart) must not hold every other one to nothing.
            limit = torch.where(medians[1] > 0, torch.fmin(limit, NORM_SPIKE * medians[1]), limit)
        history[:, count % self._window] = torch.stack([loss, norm]).where(finite.all(), math.nan)
        self._counts[length] = count + 1
        return Verdict(must_skip.float(), (norm / limit).clamp(min=1.0), torch.cat([~finite, spikes]).float(), medians)

    def forget(self) -> None:
        """Begin again without history."""
        self._history.clear()
        self._counts.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"history": dict(self._history), "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Take up an earlier history.

        Raises:
            UserError: it is not one of this window.
        """
        history, counts = state["history"], state["counts"]
        if history.keys() != counts.keys() or any(rows.shape != (2, self._window) for rows in history.values()):
            raise UserError("the checkpoint's history of losses and norms is not one of this program")
        self._history = {length: rows.to(device, torch.float32, copy=True) for length, rows in history.items()}
        self._counts = dict(counts)


def words_of(faults: Sequence[float], loss: float, norm: float, medians: Sequence[float]) -> str:
    """The faults of a verdict in words; nothing where there are none."""
    words = (
        "logits not finite",
        "loss not finite",
        "gradient not finite",
        f"loss {loss:.2f} where the median is {medians[0]:.2f}",
        f"gradient norm {norm:.3g} where the median is {medians[1]:.3g}",
    )
    return ", ".join(word for fault, word in zip(faults, words, strict=True) if fault)


CHECK_INTERVAL = 100
"""Steps between two looks at every weight, which wait for the device."""
STUCK_AFTER = 20
"""Steps in a row whose numbers are not finite: no document is to blame any more, the weights are."""
MAX_ROLL_BACKS = 3


class Health:
    """Counts what happened; the trainer asks it and acts."""

    def __init__(self) -> None:
        self.last_update: dict[str, Any] | None = None
        """Of the document that the weights last moved by: `step`, `cursor` (behind it), `where` (shard and row)."""
        self.failures_in_a_row = 0
        self.roll_backs = 0

    def note(self, step: int, sample: Sample, result: StepResult) -> None:
        """One more step."""
        self.failures_in_a_row = 0 if result.finite else self.failures_in_a_row + 1
        if result.updated:
            cursor = sample.document.cursor
            behind = [cursor.epoch, cursor.shard, cursor.row]
            self.last_update = {"step": step, "cursor": behind, "where": sample.where}

    @property
    def is_stuck(self) -> bool:
        return self.failures_in_a_row >= STUCK_AFTER

    def check(self, weights_are_finite: bool, documents: int) -> None:
        """Judge the run after so many documents.

        Raises:
            Diverged: weights or moments are not finite, or no update has happened for a while because nothing is.
        """
        if not weights_are_finite:
            raise Diverged(f"after {documents:,} documents the weights are no longer finite")
        if self.is_stuck:
            raise Diverged(f"nothing that was computed in the last {self.failures_in_a_row} steps is finite")

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
