"""Data that packages exchange (documents, samples, step results, evaluations) and the `Visualizer` protocol."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Origin:
    """The exact position of a document in its source."""

    shard: str
    """The file: a path, or an `hf://` URL that includes the revision."""
    row: int
    """0-based index of the row (line, paragraph) in that file."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """A position in a `DocumentStream`: the next row to read. Stored in checkpoints."""

    epoch: int = 0
    shard: int = 0
    """Index into the stream's list of shards."""
    row: int = 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "shard": self.shard, "row": self.row}


@dataclass(frozen=True, slots=True)
class Document:
    """One row of a source."""

    text: object
    """A `str`, or another value if the row contains one (null, a number); None if it could not be read."""
    source: str
    """The part of the data (`RedPajamaC4`, `python-docs`); the name of the data source if rows do not name one."""
    origin: Origin
    cursor: Cursor
    """The position after this document: a stream opened here continues with the next one."""
    fault: str | None = None
    """Why the row (or the rest of its shard) could not be read, e.g. `not JSON`; None if it was read."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One document as the model sees it."""

    document: Document
    """A very long text is cut."""
    ids: list[int]
    """(T,) token ids, 2 <= T <= max_seq_length."""
    text_hash: bytes
    """SHA-256 of the document's whole text in UTF-8."""
    document_bytes: int
    """UTF-8 bytes of the document's whole text."""
    predicted_bytes: int
    """UTF-8 bytes of the predicted tokens (all but the first), the denominator of bits per byte."""
    stream_state: dict[str, Any]
    """State of the `SampleStream` after this document (cursor and counts), as stored in a checkpoint."""

    @property
    def input_ids(self) -> list[int]:
        """(T-1,) inputs of the model."""
        return self.ids[:-1]

    @property
    def target_ids(self) -> list[int]:
        """(T-1,) tokens to predict."""
        return self.ids[1:]

    @property
    def where(self) -> str:
        """Shard and row of the document."""
        return f"{self.document.origin.shard} row {self.document.origin.row}"


@dataclass(frozen=True, slots=True)
class StepResult:
    """The measurements of one optimizer step, made before its update."""

    loss: float
    """Mean over the sample's predictions, nats per token."""
    accuracy: float
    """Share of predictions whose most likely token is the true one, 0...1; NaN if the logits are not finite."""
    gradient_norm: float
    """L2 norm over all parameters, before clipping."""
    token_losses: npt.NDArray[np.float32]
    """(T-1,) float32, nats."""
    token_ranks: npt.NDArray[np.int32] | None
    """(T-1,) int32, number of tokens that the model ranked above the true one (0: correct). None if the logits are not
    finite."""
    finite: bool
    """Whether logits, loss and gradient are all finite."""
    updated: bool
    """False if they are not, or if a spike was skipped; weights and moments are then unchanged."""
    fault: str
    """Description of a spike or of values that are not finite; empty if there is none."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation of held-out documents: of a whole split, or of one source in it."""

    split: str
    source: str
    """'' for all sources together."""
    loss: float
    """Mean over all predictions, nats per token."""
    accuracy: float
    """Share of correct predictions, 0...1."""
    bits_per_byte: float
    """Total loss in bits, divided by the bytes of the predicted tokens; NaN if there are none."""
    documents: int
    tokens: int
    """Predictions."""
    bytes: int
    """UTF-8 bytes of the predicted tokens."""
    seconds: float
    """Duration of the evaluation of the whole split."""


class Visualizer(Protocol):
    """Keeps the record of a run. `viz.visualizer.TrainingVisualizer` implements it."""

    def update(self, metrics: Mapping[str, Any], input_text: str = "", output_text: str = "") -> None:
        """Record one step, or one generation; `viz/record/schema.py` documents the keys of `metrics`.

        Raises OSError if the record can no longer be written. The row is then kept for `recover`: do not pass it again.
        """

    def record_event(self, step: int, kind: str, detail: str) -> None:
        """Record an event (a checkpoint, a resume, a retry). `step`: the current document, or the next one."""

    def record_evaluation(self, step: int, parts: Sequence[Mapping[str, Any]]) -> None:
        """Record an evaluation after document `step`: an `Evaluation` of the split and of each source, as mappings."""

    def record_probe(
        self, step: int, document: int, loss: float, accuracy: float, token_losses: npt.NDArray[np.float32]
    ) -> None:
        """Record a re-measurement, made after document `step`, of the document of step `document`.

        Args:
            loss: mean over its predictions, nats per token.
            accuracy: share of correct predictions, 0...1; NaN if the logits are not finite.
            token_losses: (T-1,) float32, nats.
        """

    def generate_charts(self, step: int) -> None:
        """Draw the run as of `step` finished documents. Returns immediately."""

    def save_metrics_json(self) -> None:
        """Export the JSON files. Returns immediately."""

    def flush(self) -> None:
        """Return once all rows so far are durable on disk. Raises OSError if they can't be written."""

    def recover(self) -> None:
        """Retry the writes that failed. Raises OSError if they fail again."""

    def rewind(self, step: int) -> None:
        """Delete the rows from `step` on, but no events, because the run rolls back to `step`.

        Returns once they are deleted, or will certainly be deleted before any later row is written.
        """

    def close(self, outcome: str = "done") -> None:
        """Finish the record: last chart, complete JSON files, and how the run ended."""
