"""The evaluations of a run: after which documents, and within how much of its time."""

import time
from collections.abc import Callable

from trainer.observe.evaluation import Evaluator
from trainer.observe.recorder import Recorder
from trainer.observe.totals import format_time

AUTOMATIC_INTERVAL = 500
SHORTEST_RUN = 1000
"""Documents. A shorter run is not measured unless that is asked for."""
MOST_TIME = 0.02
"""Of a run's time, that automatic evaluations may take."""


def evaluation_interval(asked: int | None, num_steps: int) -> int:
    """Documents from one evaluation to the next, 0 for never. `asked`: the same, or None where that is left to us."""
    if asked is not None:
        return asked
    return AUTOMATIC_INTERVAL if num_steps >= SHORTEST_RUN else 0


class Evaluations:
    """One evaluation each interval and one at the end, each told to the recorder.

    Automatic ones stay within `MOST_TIME`: one that is due is left out where the time for it, and for the one at the
    end, has not yet been earned. Those that are asked for are made; what they cost is said if it is more than that.
    """

    def __init__(
        self,
        evaluator: Evaluator | None,
        recorder: Recorder,
        asked: int | None,
        num_steps: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            evaluator: None where there is nothing to measure with; then nothing is ever due.
            asked: as in `evaluation_interval`.
        """
        self._evaluator = evaluator
        self._recorder = recorder
        self._is_automatic = asked is None
        self._interval = evaluation_interval(asked, num_steps) if evaluator is not None else 0
        self._num_steps = num_steps
        self._clock = clock
        self._began = clock()
        self._seconds = 0.0
        """Of all evaluations since then."""
        self._expected: float | None = None
        """Seconds of the next one: what the last one took, or a trial."""
        self._cost_is_told = False
        self.stands_at = 0
        """Documents after which the model need not be measured: it was, or the run goes on from there."""

    def start(self) -> None:
        """The run's time counts from here."""
        self._began = self._clock()

    def are_due(self, done: int) -> bool:
        """Whether there is one after `done` documents. The one at the end of a run is not asked for here."""
        return bool(self._interval) and done % self._interval == 0 and done < self._num_steps

    def make(self, done: int, *, is_last: bool = False) -> None:
        """Measure each split after `done` documents, unless that was done there or would take too much of the time."""
        if self._evaluator is None or not self._interval or done == self.stands_at:
            return
        if self._is_automatic and not self._has_time(self._evaluator, 1 if is_last else 2):
            self._leave_out(done)
            return
        since = self._clock()
        for split in self._evaluator.splits:
            self._recorder.record_evaluation(self._evaluator.measure(split), done=done)
        self.stands_at = done
        self._expected = self._clock() - since
        self._seconds += self._expected
        share = self._seconds / (self._clock() - self._began)
        if share > MOST_TIME and not self._is_automatic and not self._cost_is_told:
            self._cost_is_told = True
            each = format_time(self._expected)
            self._recorder.note(
                done, "evaluation cost", f"Evaluations have taken {share:.1%} of the time so far, the last one {each}"
            )

    def _has_time(self, evaluator: Evaluator, count: int) -> bool:
        """Whether `count` more of them would stay within what they may take of the time until now."""
        if self._expected is None:
            since = self._clock()
            self._expected = evaluator.trial_seconds()
            self._seconds += self._clock() - since
        return self._seconds + count * self._expected <= MOST_TIME * (self._clock() - self._began)

    def _leave_out(self, done: int) -> None:
        """An event each time, and said the first time."""
        detail = (
            f"No evaluation after {done:,} documents: it takes about {format_time(self._expected or 0.0)}, and all of "
            f"them together may take {MOST_TIME:.0%} of the time; --evaluation-interval {self._interval} makes each"
        )
        if self._cost_is_told:
            self._recorder.viz.record_event(done, "evaluation left out", detail)
        else:
            self._cost_is_told = True
            self._recorder.note(done, "evaluation left out", detail)
