"""`Health`: whether updates still happen, which was the last, how often the run went back. Goes with the checkpoint."""

from collections.abc import Mapping
from typing import Any

from trainer.errors import Diverged
from trainer.records import Sample, StepResult

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
