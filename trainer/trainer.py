"""The training loop, and when each action is due."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

from common.formatting import format_time
from trainer.base.checkpoint_file import STATE_HEADER
from trainer.base.device import is_out_of_memory
from trainer.config import TrainingConfig
from trainer.data.sample_stream import SampleStream
from trainer.data.tokenizer import Tokenizer
from trainer.errors import Diverged, MachineError, RunError
from trainer.learning.schedule import make_scheduler
from trainer.learning.spike_detector import CHECK_INTERVAL, MAX_ROLL_BACKS, Health
from trainer.learning.step import TrainingStep
from trainer.model.language_model import LanguageModel
from trainer.observe.evaluation import AUTOMATIC_EVALUATION, AutomaticEvaluation, Evaluations, Evaluator
from trainer.observe.forgetting import Probes
from trainer.observe.generations import Display
from trainer.observe.recorder import Recorder
from trainer.observe.terminal import Progress
from trainer.records import Sample, StepResult, Visualizer
from trainer.run.checkpoints import CheckpointManager


class Trainer:
    """Trains on one document after another and records each of them."""

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
        automatic_evaluation: AutomaticEvaluation = AUTOMATIC_EVALUATION,
        make_probes: Callable[..., Probes] = Probes,
        identity: Mapping[str, Any] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """
        Args:
            identity: entries of a checkpoint besides the trainer's own state (run id, data source, …).
            should_stop: called after each step; once it returns True, the run is saved and ends.
        """
        self.config = config
        self.model = model
        self.tokenizer = tokenizer
        self.samples = samples
        self.step = step
        self.viz = viz
        self.checkpoints = checkpoints
        self.progress = progress
        self.recorder = Recorder(viz, progress)
        self.tally = self.recorder.tally
        self.step_times = self.recorder.step_times
        self.evaluations = Evaluations(
            evaluator,
            self.recorder,
            config.evaluation_interval,
            config.num_steps,
            automatic=automatic_evaluation,
        )
        self.probes = make_probes(
            step.model, viz, config.num_steps, max_seq_length=config.max_seq_length, is_on=config.probes
        )
        self.display = Display(step.averaged, tokenizer, config.prompt, config.seed, config.display_samples)
        self.health = Health()
        self.global_step = 0
        self.start_time = time.monotonic()
        self._scheduler = make_scheduler(config.to_dict())
        self._identity = dict(identity or {})
        self._should_stop = should_stop
        self._last_saved: int | None = None
        self._save_is_overdue = False
        self._resume_point = samples.state_dict()
        """State of the samples after the document last trained on, not the one last fetched."""

    def train(self) -> str:
        """Train until all steps are done, the documents run out, or a stop is requested. Returns how the run ended:
        `done`, `documents ended` or `interrupted`.

        Raises:
            RunError: the source or the machine failed, or the model diverged. A checkpoint is saved first if possible.
        """
        self.start_time = time.monotonic()
        self.recorder.start(self.global_step, self._resume_point["cursor"]["epoch"])
        self.evaluations.start()
        self.probes.start()
        outcome, failure = "", None
        try:
            outcome = self._train_to_the_end()
        except RunError as error:
            outcome, failure = str(error), error
            if not isinstance(error, Diverged):  # diverged weights are never saved
                self._save_after(error)
        except OSError as error:
            outcome = str(error)
            failure = MachineError(f"{error}. Saved checkpoints are intact: use --resume to continue")
            self._save_after(failure)
        except BaseException as error:
            # No checkpoint: the step may be half done.
            self._close("out of memory" if is_out_of_memory(error) else "defect")
            raise
        try:
            self._close(outcome)
        except OSError as error:
            failure = failure or MachineError(f"{error}. Saved checkpoints are intact: use --resume to continue")
        if failure is not None:
            raise failure
        return outcome

    def _train_to_the_end(self) -> str:
        while True:
            try:
                outcome = self._loop()
                if outcome != "interrupted":
                    self.evaluate(is_last=True)
                self.save_checkpoint()
                self.checkpoints.wait()
                return outcome
            except Diverged as divergence:
                self.roll_back(divergence)

    def _loop(self) -> str:
        if self.global_step >= self.config.num_steps:
            return "done"
        for sample in self.samples:
            shown = self.due(self.global_step, self.config.display_samples)
            generations = self.display.show(sample, self.global_step) if shown else []
            learning_rate, waited = self.get_learning_rate(self.global_step), self.samples.waited_seconds
            result = self.step(sample.ids, learning_rate)
            self._advance(sample, result)
            self.recorder.record(sample, result, generations, learning_rate, waited, done=self.global_step)
            self.probes.follow(sample, self.global_step)
            self.checkpoints.raise_failure()
            if self.health.is_stuck or self.due(self.global_step, CHECK_INTERVAL):
                self.check_health()
            if self.should_evaluate():
                self.evaluate()
            if self.due(self.global_step, self.config.viz_interval):
                self.viz.generate_charts(self.global_step)
                self.viz.save_metrics_json()
            if self._save_is_overdue or self.due(self.global_step, self.config.checkpoint_interval):
                self._save_when_possible()
            if self.should_terminate():
                break
        if self.global_step >= self.config.num_steps:
            return "done"
        if self._should_stop():
            return "interrupted"
        self._resume_point = self.samples.state_dict()  # includes the documents skipped after the last one
        return "documents ended"

    def train_step(self, input_ids: list[int], target_ids: list[int]) -> tuple[float, float]:
        """Make one step on the given ids at the current learning rate. `global_step` does not change.

        Args:
            input_ids: (T,) inputs of the model.
            target_ids: (T,) tokens to predict: `input_ids` shifted by one token.

        Returns:
            Loss in nats per token and accuracy in 0...1, both before the update.

        Raises:
            ValueError: `target_ids` is not `input_ids` shifted by one token, or is longer than max_seq_length - 1.
        """
        if not input_ids or list(input_ids[1:]) != list(target_ids[:-1]) or len(input_ids) != len(target_ids):
            raise ValueError("target_ids must be input_ids shifted by one token, both of the same length")
        if len(input_ids) >= self.config.max_seq_length:
            raise ValueError(f"expected at most max_seq_length - 1 predictions, found {len(input_ids)}")
        result = self.step([*input_ids, target_ids[-1]], self.get_learning_rate(self.global_step))
        return result.loss, result.accuracy

    def get_learning_rate(self, step: int) -> float:
        """Return the base learning rate of a step."""
        return self._scheduler.get_learning_rate(step)

    def format_time(self, seconds: float) -> str:
        """Return a duration as `45.0s`, `37.8m` or `2.5h`."""
        return format_time(seconds)

    @staticmethod
    def due(count: int, interval: int) -> bool:
        return count % interval == 0

    def should_evaluate(self) -> bool:
        return self.evaluations.are_due(self.global_step)

    def evaluate(self, *, is_last: bool = False) -> None:
        """Evaluate, print and record every held-out split, if the time budget allows it."""
        self.evaluations.make(self.global_step, is_last=is_last)

    def should_terminate(self) -> bool:
        return self.global_step >= self.config.num_steps or self._should_stop()

    def _advance(self, sample: Sample, result: StepResult) -> None:
        """Move the resume point past the document. This comes first, because recording it may fail."""
        self.health.note(self.global_step, sample, result)
        self._resume_point = sample.stream_state
        self.global_step += 1

    def note(self, kind: str, detail: str) -> None:
        """Print an event above the progress bar and record it under the next document."""
        self.recorder.note(self.global_step, kind, detail)

    def note_often(self, kind: str, detail: str) -> None:
        """Like `note`, for frequent events, which are not printed each time."""
        self.recorder.note_often(self.global_step, kind, detail)

    def check_health(self) -> None:
        """Check every weight and moment, which waits for the device. Raises Diverged if one is not finite."""
        self.health.check(self.step.is_finite(), self.global_step)

    def roll_back(self, divergence: Diverged) -> None:
        """Roll back to the newest checkpoint from before the last update, and skip the document of that update.

        Raises:
            Diverged: there is no such checkpoint, or the run was rolled back three times already.
        """
        advice = f"a --learning-rate below {self.config.initial_learning_rate:g} or a longer --warmup-steps"
        cause = self.health.last_update
        if self.health.roll_backs >= MAX_ROLL_BACKS:
            raise Diverged(f"{divergence}, after {MAX_ROLL_BACKS} rollbacks. Resume with {advice}") from divergence
        with contextlib.suppress(OSError):  # of a save in progress, whose state is discarded anyway
            self.checkpoints.wait()
        found = cause and self.checkpoints.load_newest(lambda why: self.note("checkpoint refused", why), cause["step"])
        if not cause or not found:
            raise Diverged(
                f"{divergence}, and there is no earlier checkpoint to roll back to. Try {advice}"
            ) from divergence
        path, state = found
        # Includes the documents of earlier rollbacks: this one may go further back.
        state["samples"]["passed_by"] = [*self._resume_point["passed_by"], cause["cursor"]]
        state["health"]["roll_backs"] = self.health.roll_backs + 1
        moved = self.checkpoints.set_aside_newer(state["step"], str(self._identity.get("run_id")))
        self.viz.rewind(state["step"])
        self.samples = self.samples.again(state["samples"])
        self.load_state_dict(state)
        self.recorder.rewind(self.global_step, self._resume_point["cursor"]["epoch"])
        detail = f"Rolled back to {path}: {divergence}. Skipped the document of step {cause['step']}, {cause['where']}"
        self.note("roll-back", f"{detail}. {moved}" if moved else detail)
        self._last_saved, self._save_is_overdue = None, False
        self.save_checkpoint()
        self.checkpoints.wait()  # or a kill would bring the document back

    def save_checkpoint(self) -> None:
        """Start saving a checkpoint, if they are enabled. It gets its name after all rows below it are on disk.

        Raises:
            OSError: the previous checkpoint could not be written.
            Diverged: the weights are not finite; such a state is never saved.
        """
        if not self.global_step or self._last_saved == self.global_step:
            return
        self.check_health()
        if not self.config.checkpoint:
            return
        step = self.global_step
        self.checkpoints.save(
            step,
            self.state_dict(),
            before_naming=self.viz.flush,
            done=lambda path: self.viz.record_event(step, "checkpoint", str(path)),
        )
        self._last_saved = step

    def _save_when_possible(self) -> None:
        """Save now, or after the previous save, if another process that holds the store delays it."""
        was_overdue = self._save_is_overdue
        self._save_is_overdue = not self.checkpoints.wait_for_disk()
        if not self._save_is_overdue:
            self.save_checkpoint()
        elif not was_overdue:
            self.note("checkpoint postponed", "Checkpoint postponed: the previous one is still waiting for the store")

    def recent_texts(self) -> list[str]:
        """Return the texts of the last documents, as far as they were read."""
        return [self.tokenizer.DecodeIds(ids) for ids in self.tally.last_ids()]

    def state_dict(self) -> dict[str, Any]:
        """Return the complete state of the run as a plain dict."""
        return {
            **STATE_HEADER,
            "shape": dataclasses.asdict(self.model.shape),
            "vocab_size": self.tokenizer.vocab_size,
            **self.step.state_dict(),
            "step": self.global_step,
            "samples": self._resume_point,
            "tally": self.tally.state_dict(),
            "display": self.display.state_dict(),
            "probes": self.probes.state_dict(),
            "health": self.health.state_dict(),
            "tokenizer": self.tokenizer.model_bytes,
            "config": self.config.to_dict(),
            **self._identity,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`. The `SampleStream` receives its part of it when it is created."""
        self.step.load_state_dict(state)
        self.tally.load_state_dict(state["tally"])
        self.display.load_state_dict(state["display"])
        self.probes.load_state_dict(state["probes"])
        self.health.load_state_dict(state["health"])
        self._resume_point = dict(state["samples"])
        self.global_step = self._last_saved = self.evaluations.evaluated_at = state["step"]

    def _save_after(self, failure: RunError) -> None:
        """Try once more to save. If that fails too, the run still ends with the first failure."""
        try:
            try:
                self.checkpoints.wait()
            except OSError:  # of the previous save, which is repeated here
                self._last_saved = None
            if isinstance(failure, MachineError):
                self._last_saved = None
            self.viz.recover()
            self.save_checkpoint()
            self.checkpoints.wait()
        except (OSError, Diverged) as error:
            self.progress.say(f"The final attempt to save failed too: {error}")

    def _close(self, outcome: str) -> None:
        self.samples.close()
        try:
            self.checkpoints.wait()  # a save in progress works on a copy, so it is valid whatever happened since
        except Exception as error:  # noqa: BLE001  # the run ends for another reason, which the caller reports
            self.progress.say(f"The last checkpoint could not be written: {error}")
        self.progress.close()
        self.viz.close(outcome)
