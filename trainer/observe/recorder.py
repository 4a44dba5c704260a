"""What becomes of a step that is done: counted, written down in one row, shown on the bar, told where it was odd."""

import dataclasses
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from trainer.observe.generations import Generation
from trainer.observe.terminal import Progress
from trainer.observe.totals import Tally, usual_mean
from trainer.records import Evaluation, Sample, StepResult, Visualizer


class Recorder:
    """The one who tells the record and the terminal about the run, in the thread that trains or, by `note`, in any."""

    def __init__(self, viz: Visualizer, progress: Progress) -> None:
        self.viz = viz
        self.progress = progress
        self.tally = Tally()
        self.step_times: deque[float] = deque(maxlen=100)
        """Seconds of the last steps, waits included."""
        self._epoch = 0
        self._step_ended = time.monotonic()
        self._noted: Counter[str] = Counter()

    def start(self, done: int, epoch: int) -> None:
        """The clock runs from here; `done` documents were finished before, the last in `epoch`."""
        self._epoch = epoch
        self._step_ended = time.monotonic()
        self.progress.start(done)

    def record(
        self,
        sample: Sample,
        result: StepResult,
        generations: list[Generation],
        learning_rate: float,
        waited: float,
        *,
        done: int,
    ) -> None:
        """One row for the document, in the store and on the bar.

        Args:
            waited: seconds that the sample was waited for.
            done: documents finished, this one included.

        Raises:
            OSError: the record can't be written any more. Everything was counted and handed over all the same.
        """
        step = done - 1
        now = time.monotonic()
        seconds, self._step_ended = now - self._step_ended, now
        self.step_times.append(seconds)
        count = len(sample.ids) - 1
        self.tally.add(sample.ids, sample.predicted_bytes, result.loss, result.accuracy, seconds, waited)
        metrics: dict[str, Any] = {
            "step": step,
            "loss": result.loss,
            "accuracy": result.accuracy,
            "throughput": count / seconds,
            "learning_rate": learning_rate,
            "gradient_norm": result.gradient_norm,
            "tokens": count,
            "bytes": sample.predicted_bytes,
            "seconds": seconds,
            "seconds_waited": waited,
            "unigram_entropy": self.tally.unigram_entropy,
            "source": sample.document.source,
            "shard": sample.document.origin.shard,
            "row": sample.document.origin.row,
            "text_hash": sample.text_hash,
            "document_bytes": sample.document_bytes,
            "token_ids": sample.ids,
            "token_losses": result.token_losses,
            "token_ranks": result.token_ranks,
        }
        rows = [({"step": step, **shown.metrics()}, shown.input, shown.output) for shown in generations]
        own, *prompted = rows or [({}, "", "")]
        failure = self._write([({**metrics, **own[0]}, own[1], own[2]), *prompted])
        try:
            self._tell(step, sample, result)
        except OSError as error:
            failure = failure or error
        if failure is not None:
            raise failure
        self.progress.show(done, self.tally, learning_rate, usual_mean(self.step_times))

    def rewind(self, done: int, epoch: int) -> None:
        """The run went back: only `done` documents are finished, the last in `epoch`."""
        self._epoch = epoch
        self.progress.rewind(done)

    def _tell(self, step: int, sample: Sample, result: StepResult) -> None:
        """What was odd about a step, as events."""
        epoch = sample.document.cursor.epoch
        if epoch != self._epoch:  # not told where documents are read: what is read ahead has not been trained on yet
            self._epoch = epoch
            self.note(step, "epoch", f"All documents were read: epoch {epoch + 1} begins at step {step:,}")
        if result.fault:
            kind, what = ("spike", "A spike at step") if result.finite else ("skipped update", "Step")
            ending = "" if result.updated else ", no update"
            self.note_often(step, kind, f"{what} {step:,}: {result.fault}{ending} ({sample.where})")

    def record_evaluation(self, found: Sequence[Evaluation], *, done: int) -> None:
        """Keep what was measured on held-out documents under the document last trained on, and say it.

        Args:
            found: of the whole split first, then of its sources.
        """
        self.viz.record_evaluation(done - 1, [dataclasses.asdict(part) for part in found])
        whole = found[0]
        self.progress.say(
            f"After {done:,} documents: loss {whole.loss:.4f}, {whole.bits_per_byte:.3f} bits per byte, accuracy "
            f"{whole.accuracy:.1%} on {whole.documents:,} held-out documents ({whole.split})"
        )

    def note(self, step: int, kind: str, detail: str) -> None:
        """Say something above the bar and keep it as an event."""
        self.progress.say(detail)
        self.viz.record_event(step, kind, detail)

    def note_often(self, step: int, kind: str, detail: str) -> None:
        """Like `note`, for what may happen at every step: said the first three times, then the 10th, 100th …"""
        self._noted[kind] += 1
        count = self._noted[kind]
        if count <= 3 or str(count).strip("0") == "1":
            self.progress.say(detail if count == 1 else f"{detail}, {count:,} so far")
        self.viz.record_event(step, kind, detail)

    def _write(self, rows: list[tuple[dict[str, Any], str, str]]) -> OSError | None:
        """Hand over all rows; the record keeps them also where it raises OSError, which is returned."""
        failure = None
        for row in rows:
            try:
                self.viz.update(*row)
            except OSError as error:
                failure = error
        return failure
