"""The loop, and when each thing is due. No arithmetic and no I/O of its own."""

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from trainer.checkpoint import CheckpointManager
from trainer.config import TrainingConfig
from trainer.display import Display, Generation
from trainer.errors import MachineError, RunError
from trainer.evaluator import Evaluator
from trainer.model import LanguageModel
from trainer.progress import Progress
from trainer.records import Sample, StepResult, Visualizer
from trainer.samples import SampleStream
from trainer.schedule import warmup_then_constant
from trainer.state_file import STATE_HEADER
from trainer.step import TrainingStep
from trainer.tally import Tally, format_time
from trainer.tokenizer import Tokenizer


class Trainer:
    """Trains on one document after the other and has each recorded."""

    def __init__(
        self,
        config: TrainingConfig,
        *,
        model: LanguageModel,
        tokenizer: Tokenizer,
        samples: SampleStream,
        step: TrainingStep,
        viz: Visualizer,
        checkpoints: CheckpointManager,
        progress: Progress,
        evaluator: Evaluator | None = None,
        identity: Mapping[str, Any] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """
        Args:
            identity: what a checkpoint says of its run beside the trainer's own state (run id, data source, …).
            should_stop: asked after each step; once true the run is saved and ends.
        """
        self.config = config
        self.model = model
        self.tokenizer = tokenizer
        self.samples = samples
        self.step = step
        self.viz = viz
        self.checkpoints = checkpoints
        self.progress = progress
        self.evaluator = evaluator
        self.display = Display(model, tokenizer, config.prompt, config.seed)
        self.tally = Tally()
        self.global_step = 0
        self.start_time = time.monotonic()
        self.step_times: deque[float] = deque(maxlen=100)
        self._identity = dict(identity or {})
        self._should_stop = should_stop
        self._last_saved: int | None = None
        self._skipped_updates = 0
        self._epoch: int = samples.state_dict()["cursor"]["epoch"]
        self._step_ended = self.start_time

    def train(self) -> str:
        """Train until the steps are done, the documents end or a stop is asked for. Returns how it ended: `done`,
        `documents ended` or `interrupted`.

        Raises:
            RunError: the source failed, or the machine; what was trained until then is saved first.
        """
        self.start_time = self._step_ended = time.monotonic()
        self.progress.start(self.global_step)
        outcome, failure = "", None
        try:
            outcome = self._loop()
            self.save_checkpoint()
        except RunError as error:
            outcome, failure = str(error), error
            self._save_after(error)
        except OSError as error:
            # The store or a checkpoint can't be written. A checkpoint needs its rows on disk first, so the attempt that
            # just failed was the last one there is.
            outcome = str(error)
            failure = MachineError(f"{error}. What was saved before is whole: --resume goes on from there")
        except BaseException:
            self._close("defect")  # no checkpoint: the state may be half of a step
            raise
        try:
            self._close(outcome)
        except OSError as error:
            failure = failure or MachineError(f"{error}. What was saved before is whole: --resume goes on from there")
        if failure is not None:
            raise failure
        return outcome

    def _loop(self) -> str:
        if self.global_step >= self.config.num_steps:
            return "done"
        for sample in self.samples:
            shown = self.due(self.global_step, self.config.display_samples)
            generations = self.display.show(sample, self.global_step) if shown else []
            result = self.step(sample.ids, self.get_learning_rate(self.global_step))
            self._record(sample, result, generations)
            self.global_step += 1
            if self.due(self.global_step, self.config.viz_interval):
                self.viz.generate_charts(self.global_step)
                self.viz.save_metrics_json()
            if self.should_evaluate():
                self.evaluate()
            if self.due(self.global_step, self.config.checkpoint_interval):
                self.save_checkpoint()
            if self.should_terminate():
                break
        if self.global_step >= self.config.num_steps:
            return "done"
        return "interrupted" if self._should_stop() else "documents ended"

    def train_step(self, input_ids: list[int], target_ids: list[int]) -> tuple[float, float]:
        """One step at the current learning rate, on ids of one's own; waits for the device. `global_step` stays.

        Args:
            input_ids: (T,) what the model reads.
            target_ids: (T,) what it must predict: the same text, one token on.

        Returns:
            Loss in nats per token and accuracy in 0...1, both before the update.

        Raises:
            ValueError: the two are not one text shifted by one token, or longer than max_seq_length - 1.
        """
        if not input_ids or list(input_ids[1:]) != list(target_ids[:-1]) or len(input_ids) != len(target_ids):
            raise ValueError("target_ids must be input_ids moved on by one token, both of the same length")
        if len(input_ids) >= self.config.max_seq_length:
            raise ValueError(f"{len(input_ids)} predictions are more than max_seq_length - 1")
        result = self.step([*input_ids, target_ids[-1]], self.get_learning_rate(self.global_step))
        return result.loss, result.accuracy

    def get_learning_rate(self, step: int) -> float:
        """The base learning rate of a step."""
        return warmup_then_constant(step, self.config.initial_learning_rate, self.config.warmup_steps)

    def format_time(self, seconds: float) -> str:
        """`45.0s`, `37.8m`, `2.5h`."""
        return format_time(seconds)

    @staticmethod
    def due(count: int, interval: int) -> bool:
        return count % interval == 0

    def should_evaluate(self) -> bool:
        interval = self.config.evaluation_interval
        return self.evaluator is not None and interval is not None and self.due(self.global_step, interval)

    def evaluate(self) -> None:
        """Measure every held-out split, say it and keep it under the document last trained on."""
        if self.evaluator is None:
            return
        for split in self.evaluator.splits:
            found = self.evaluator.measure(split)
            self.viz.record_evaluation(self.global_step - 1, dataclasses.asdict(found))
            self.progress.say(
                f"After {self.global_step:,} documents: loss {found.loss:.4f}, accuracy {found.accuracy:.1%} "
                f"on {found.tokens:,} held-out predictions ({split})"
            )

    def should_terminate(self) -> bool:
        return self.global_step >= self.config.num_steps or self._should_stop()

    def _record(self, sample: Sample, result: StepResult, generations: list[Generation]) -> None:
        """One row for the document, in the store and on the bar."""
        self._note_epoch(sample.document.cursor.epoch)
        now = time.monotonic()
        seconds, self._step_ended = now - self._step_ended, now
        self.step_times.append(seconds)
        waited, count = self.samples.waited_seconds, len(sample.ids) - 1
        learning_rate = self.get_learning_rate(self.global_step)
        metrics: dict[str, Any] = {
            "step": self.global_step,
            "loss": result.loss,
            "accuracy": result.accuracy,
            "throughput": count / seconds,
            "learning_rate": learning_rate,
            "gradient_norm": result.gradient_norm,
            "tokens": count,
            "bytes": sample.predicted_bytes,
            "seconds": seconds,
            "seconds_waited": waited,
            "source": sample.document.source,
            "shard": sample.document.origin.shard,
            "row": sample.document.origin.row,
            "text_hash": sample.text_hash,
            "document_bytes": sample.document_bytes,
            "token_ids": sample.ids,
            "token_losses": result.token_losses,
            "token_ranks": result.token_ranks,
        }
        if generations:
            self.viz.update({**metrics, **generations[0].metrics()}, generations[0].input, generations[0].output)
        else:
            self.viz.update(metrics)
        for generation in generations[1:]:
            self.viz.update({"step": self.global_step, **generation.metrics()}, generation.input, generation.output)
        if not result.updated:
            self._note_skipped_update(sample)
        self.tally.add(sample.ids, sample.predicted_bytes, result.loss, result.accuracy, seconds, waited)
        left = (self.config.num_steps - self.global_step - 1) * sum(self.step_times) / len(self.step_times)
        self.progress.show(self.global_step + 1, self.tally, learning_rate, left)

    def _note_epoch(self, epoch: int) -> None:
        # Here, not where documents are read: what is read ahead has not been trained on yet.
        if epoch != self._epoch:
            self._epoch = epoch
            self.note("epoch", f"All documents were read: epoch {epoch + 1} begins at step {self.global_step:,}")

    def _note_skipped_update(self, sample: Sample) -> None:
        """An event each time; said the 1st, 10th, 100th … time, so that a diverged run can still be read."""
        self._skipped_updates += 1
        origin = sample.document.origin
        detail = f"step {self.global_step}: the gradient is not finite, weights stay ({origin.shard} row {origin.row})"
        self.viz.record_event(self.global_step, "skipped update", detail)
        if set(str(self._skipped_updates)[1:]) <= {"0"} and str(self._skipped_updates)[0] == "1":
            self.progress.say(detail if self._skipped_updates == 1 else f"{detail}, {self._skipped_updates:,} so far")

    def note(self, kind: str, detail: str) -> None:
        """Say something above the bar and keep it as an event."""
        self.progress.say(detail)
        self.viz.record_event(self.global_step, kind, detail)

    def save_checkpoint(self) -> None:
        """Save the whole state, unless that is switched off. All rows below it are on disk before it gets its name.

        Raises:
            OSError: rows or checkpoint could not be written.
        """
        if not self.config.checkpoint or not self.global_step or self._last_saved == self.global_step:
            return
        self.viz.flush()
        path = self.checkpoints.save(self.global_step, self.state_dict())
        self._last_saved = self.global_step
        self.viz.record_event(self.global_step, "checkpoint", str(path))

    def recent_texts(self) -> list[str]:
        """What the last documents say, as far as they were read."""
        return [self.tokenizer.DecodeIds(ids) for ids in self.tally.last_ids()]

    def state_dict(self) -> dict[str, Any]:
        """The run's whole memory, as a plain dict."""
        return {
            **STATE_HEADER,
            "shape": dataclasses.asdict(self.config.shape),
            "vocab_size": self.tokenizer.vocab_size,
            **self.step.state_dict(),
            "step": self.global_step,
            "samples": self.samples.state_dict(),
            "tally": self.tally.state_dict(),
            "tokenizer": self.tokenizer.model_bytes,
            "config": self.config.to_dict(),
            **self._identity,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state` was saved. The samples are given their part when they are made."""
        self.step.load_state_dict(state)
        self.tally.load_state_dict(state["tally"])
        self.global_step = self._last_saved = state["step"]

    def _save_after(self, failure: RunError) -> None:
        """Save what was trained before the source failed; when that fails too, the first failure is the one to tell."""
        try:
            self.save_checkpoint()
        except OSError as error:
            self.progress.say(f"{error}, after: {failure}")

    def _close(self, outcome: str) -> None:
        self.samples.close()
        self.progress.close()
        self.viz.close(outcome)
