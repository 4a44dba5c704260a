"""What passes between the rooms: a document, its cursor, the sample made of it, the result of its step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a document stands in its source, precise enough to find it again."""

    shard: str
    """The file: a path, or an `hf://` address that includes the revision."""
    row: int
    """0-based index of the row (line, paragraph) in that file."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """A position in a `DocumentStream`: the next row to read. A plain record, so that a checkpoint can keep it."""

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
    """A `str`, unless the row holds something else (null, a number), then that; None where it could not be read."""
    source: str
    """Which part of the data this is (`RedPajamaC4`, `python-docs`); the data source's name where rows do not say."""
    origin: Origin
    cursor: Cursor
    """The position just behind this document: a stream opened here goes on with the next one."""
    fault: str | None = None
    """Why the row (or all that is left of its shard) could not be read, like `not JSON`; None for a sound one."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One document as the model sees it."""

    document: Document
    """Its text is cut where it is very long."""
    ids: list[int]
    """(T,) token ids, 2 <= T <= max_seq_length."""
    text_hash: bytes
    """SHA-256 of the document's whole text in UTF-8."""
    document_bytes: int
    """UTF-8 bytes of the document's whole text."""
    predicted_bytes: int
    """UTF-8 bytes that the predicted tokens (all but the first) spell: what bits per byte are counted over."""
    stream_state: dict[str, Any]
    """State of the `SampleStream` just behind this document: cursor and counts. What a checkpoint keeps."""

    @property
    def input_ids(self) -> list[int]:
        """(T-1,) what the model reads."""
        return self.ids[:-1]

    @property
    def target_ids(self) -> list[int]:
        """(T-1,) what it must predict."""
        return self.ids[1:]

    @property
    def where(self) -> str:
        """Shard and row, to find the document again."""
        return f"{self.document.origin.shard} row {self.document.origin.row}"


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step measured, before its update."""

    loss: float
    """Mean over the sample's predictions, nats per token."""
    accuracy: float
    """Share of predictions whose most likely token is the true one, 0...1; NaN where the logits are not finite."""
    gradient_norm: float
    """L2 norm over all parameters, before clipping."""
    token_losses: npt.NDArray[np.float32]
    """(T-1,) float32, nats."""
    token_ranks: npt.NDArray[np.int32] | None
    """(T-1,) int32, how many tokens the model held more likely than the true one; 0 is a hit. None where the logits are
    not finite: then there is no order among them."""
    finite: bool
    """Logits, loss and gradient were all finite numbers."""
    updated: bool
    """False when they were not, or where a spike is skipped: then weights and moments are as before."""
    fault: str
    """What was wrong with the step's numbers (not finite, or a spike), in words; nothing where nothing was."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one look at held-out documents measured: of a whole split, or of those from one source."""

    split: str
    source: str
    """'' where it is all sources together."""
    loss: float
    """Mean over all its predictions, nats per token."""
    accuracy: float
    """Share of all its predictions, 0...1."""
    bits_per_byte: float
    """What the predictions cost together, for each byte that they spell; NaN where they spell none."""
    documents: int
    tokens: int
    """Predictions."""
    bytes: int
    """UTF-8 bytes that they spell."""
    seconds: float
    """That the look took, at the whole split."""


class Visualizer(Protocol):
    """Who keeps the record. `viz.visualizer.TrainingVisualizer` is one; a list in a test is another."""

    def update(self, metrics: Mapping[str, Any], input_text: str = "", output_text: str = "") -> None:
        """Record one step, or one generation; `viz/record/writer.py` documents the keys of `metrics`.

        Raises OSError when the record can't be written any more. The row is kept all the same, for `recover`: it must
        not be given again.
        """

    def record_event(self, step: int, kind: str, detail: str) -> None:
        """Keep what happened (a checkpoint, a resume, a retry) for good. `step`: the document then in hand, or next."""

    def record_evaluation(self, step: int, parts: Sequence[Mapping[str, Any]]) -> None:
        """Record an evaluation after document `step`: the fields of an `Evaluation` for the whole and each source."""

    def record_probe(
        self, step: int, document: int, loss: float, accuracy: float, token_losses: npt.NDArray[np.float32]
    ) -> None:
        """Record how the document of step `document` fared after document `step`, when it was measured again.

        Args:
            loss: mean over its predictions, nats per token.
            accuracy: share of its predictions, 0...1; NaN where the logits are not finite.
            token_losses: (T-1,) float32, nats.
        """

    def generate_charts(self, step: int) -> None:
        """Draw the run as of `step` finished documents. Returns at once."""

    def save_metrics_json(self) -> None:
        """Export the JSON files. Returns at once."""

    def flush(self) -> None:
        """Return when all rows so far are on disk for good. Raises OSError when they can't be written."""

    def recover(self) -> None:
        """Try once more to write what could not be written. Raises OSError when it still can't be."""

    def rewind(self, step: int) -> None:
        """Forget the rows from `step` on, never events, because the run itself goes back there.

        Returns when they are deleted, or certain to be before any later row is written.
        """

    def close(self, outcome: str = "done") -> None:
        """Finish what was asked for: last chart, complete JSON files, one store file that says how the run ended."""
