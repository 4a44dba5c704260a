"""Records each finished step: totals, one row in the store, the progress bar, and events such as spikes."""

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
    """Passes the steps and events of a run to the record and the terminal. `note` may be called from any thread."""

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
        """Start the clock. `done` documents were finished before, the last of them in `epoch`."""
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
        """Record one document in the store and on the progress bar.

        Args:
            waited: seconds that the run waited for the sample.
            done: documents finished, including this one.

        Raises:
            OSError: the record can no longer be written. The document was still counted, and its rows were passed on.
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
            self._report_events(step, sample, result)
        except OSError as error:
            failure = failure or error
        if failure is not None:
            raise failure
        self.progress.show(done, self.tally, learning_rate, usual_mean(self.step_times))

    def rewind(self, done: int, epoch: int) -> None:
        """Go back to `done` finished documents, the last of them in `epoch`."""
        self._epoch = epoch
        self.progress.rewind(done)

    def _report_events(self, step: int, sample: Sample, result: StepResult) -> None:
        """Report a new epoch, a spike or a skipped update."""
        epoch = sample.document.cursor.epoch
        if epoch != self._epoch:  # reported here and not by the reader, which reads ahead of training
            self._epoch = epoch
            self.note(step, "epoch", f"All documents were read; epoch {epoch + 1} starts at step {step:,}")
        if result.fault:
            kind, what = ("spike", "Spike") if result.finite else ("skipped update", "Skipped update")
            ending = ", update skipped" if result.finite and not result.updated else ""
            self.note_often(step, kind, f"{what} at step {step:,} ({sample.where}): {result.fault}{ending}")

    def record_evaluation(self, found: Sequence[Evaluation], *, done: int) -> None:
        """Record an evaluation under the document last trained on, and print it.

        Args:
            found: the evaluation of the whole split, then of each source.
        """
        self.viz.record_evaluation(done - 1, [dataclasses.asdict(part) for part in found])
        whole = found[0]
        self.progress.say(
            f"After {done:,} documents: loss {whole.loss:.4f}, {whole.bits_per_byte:.3f} bits per byte, accuracy "
            f"{whole.accuracy:.1%} on {whole.documents:,} held-out documents ({whole.split})"
        )

    def note(self, step: int, kind: str, detail: str) -> None:
        """Print an event above the progress bar and record it."""
        self.progress.say(detail)
        self.viz.record_event(step, kind, detail)

    def note_often(self, step: int, kind: str, detail: str) -> None:
        """Like `note`, for frequent events: printed the first three times, then the 10th, 100th … time."""
        self._noted[kind] += 1
        count = self._noted[kind]
        if count <= 3 or str(count).strip("0") == "1":
            so_far = {1: "", 3: " (3 so far; later ones are printed only at 10, 100 …)"}
            self.progress.say(detail + so_far.get(count, f", {count:,} so far"))
        self.viz.record_event(step, kind, detail)

    def _write(self, rows: list[tuple[dict[str, Any], str, str]]) -> OSError | None:
        """Pass on all rows and return an OSError if one was raised; the record keeps the rows in that case too."""
        failure = None
        for row in rows:
            try:
                self.viz.update(*row)
            except OSError as error:
                failure = error
        return failure
