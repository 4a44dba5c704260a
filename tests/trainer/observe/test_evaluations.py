"""When a run is measured, and how much of its time that takes: with a clock that only the test moves."""

from pathlib import Path
from typing import Any

import pytest

from tests.trainer.test_trainer import Notebook
from trainer.observe.evaluation import AUTOMATIC_EVALUATION, Evaluations, Evaluator, evaluation_interval
from trainer.observe.recorder import Recorder
from trainer.observe.terminal import Progress
from trainer.records import Evaluation

MOST_TIME = AUTOMATIC_EVALUATION.share_of_time


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Slow(Evaluator):
    """An evaluator that takes as long as it is told to, and measures nothing."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds, self.trials = clock, seconds, 0

    @property
    def splits(self) -> list[str]:
        return ["validation"]

    def trial_seconds(self) -> float:
        self.trials += 1
        self.clock.now += self.seconds * 9 / 64
        return self.seconds

    def measure(self, split: str = "validation") -> list[Evaluation]:
        self.clock.now += self.seconds
        return [Evaluation(split, "", 3.0, 0.1, 1.0, 64, 1000, 4000, self.seconds)]


class Run:
    """Steps of `step_seconds` each, with evaluations of `seconds`."""

    def __init__(self, asked: int | None, num_steps: int, step_seconds: float, seconds: float) -> None:
        self.clock, self.num_steps, self.step_seconds = Clock(), num_steps, step_seconds
        self.evaluator = Slow(self.clock, seconds)
        self.notebook = Notebook()
        recorder = Recorder(self.notebook, Progress(num_steps))
        self.evaluations = Evaluations(self.evaluator, recorder, asked, num_steps, clock=self.clock)
        self.done, self.spent = 0, 0.0
        self.shares: list[float] = []

    def train(self, until: int | None = None) -> list[int]:
        """Returns the steps that were measured so far."""
        if self.done == 0:
            self.clock.now += 500  # what comes before a run is none of its time
            self.evaluations.start()
            self.began = self.clock.now
        while self.done < (until or self.num_steps):
            self.clock.now += self.step_seconds
            self.done += 1
            before = self.clock.now
            if self.evaluations.are_due(self.done):
                self.evaluations.make(self.done)
            if self.done == self.num_steps:
                self.evaluations.make(self.done, is_last=True)
            self.spent += self.clock.now - before
            self.shares.append(self.spent / (self.clock.now - self.began))
        return [step for step, _ in self.notebook.of("evaluation")]

    def events(self) -> list[tuple[Any, ...]]:
        return self.notebook.of("event")


def test_the_interval_is_what_was_asked_for_or_depends_on_the_length_of_the_run() -> None:
    assert [evaluation_interval(None, steps) for steps in (1, 999, 1000, 10**6)] == [0, 0, 500, 500]
    assert [evaluation_interval(asked, 5000) for asked in (0, 7)] == [0, 7]
    assert evaluation_interval(7, 100) == 7


@pytest.mark.parametrize(("asked", "steps"), [(None, 999), (0, 5000)])
def test_a_short_run_and_one_that_is_not_to_be_measured_are_not(asked: int | None, steps: int) -> None:
    run = Run(asked, steps, 1.0, 0.1)
    assert run.train() == [] and run.events() == [] and run.evaluator.trials == 0


def test_cheap_evaluations_are_made_at_each_interval_and_at_the_end() -> None:
    run = Run(None, 2700, 0.1, 0.1)
    assert run.train() == [499, 999, 1499, 1999, 2499, 2699]
    assert run.events() == [] and run.evaluator.trials == 1


def test_the_end_of_a_run_is_measured_once() -> None:
    assert Run(None, 2000, 0.1, 0.1).train() == [499, 999, 1499, 1999]
    assert Run(5, 12, 1.0, 0.01).train() == [4, 9, 11]


@pytest.mark.parametrize("seconds", [0.4, 0.99, 2.0, 3.3, 5.0])  # of 64 documents; a step on one takes 0.1
def test_automatic_evaluations_never_take_more_than_their_share(seconds: float) -> None:
    run = Run(None, 10_000, 0.1, seconds)
    measured = run.train()
    assert max(run.shares) <= MOST_TIME
    assert len(measured) == 20 or run.shares[-1] > MOST_TIME / 2  # and they are made where there is time
    assert measured[-1] == 9999  # for which time is kept
    left_out = [step for step, kind, _ in run.events() if kind == "evaluation left out"]
    assert sorted(left_out + [step + 1 for step in measured]) == list(range(500, 10_001, 500))


def test_what_is_left_out_is_said_once_and_kept_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(None, 3000, 0.1, 100.0)
    assert run.train() == [] and run.evaluator.trials == 1
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert said.startswith("No evaluation after 500 documents: it takes about 1.7m") and "2%" in said
    assert [(step, kind) for step, kind, _ in run.events()] == [
        (done, "evaluation left out") for done in range(500, 3001, 500)
    ]


def test_what_an_evaluation_took_too_long_is_made_up_for() -> None:
    run = Run(None, 20_000, 0.1, 1.0)
    run.train(until=2000)
    run.evaluator.seconds = 10.0  # others compute on this machine now
    run.train(until=2500)
    assert run.shares[-1] > MOST_TIME
    run.evaluator.seconds = 1.0
    measured = run.train()
    assert run.shares[-1] <= MOST_TIME
    assert measured[:3] == [1499, 1999, 2499] and measured[3] > 8000 and measured[-1] == 19_999


def test_evaluations_that_are_asked_for_are_made_whatever_they_cost(capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(10, 40, 1.0, 5.0)
    assert run.train() == [9, 19, 29, 39]
    said = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("After")]
    assert said == ["Evaluations have taken 33.3% of the time so far, the last one 5.0s"]
    assert [(step, kind) for step, kind, _ in run.events()] == [(10, "evaluation cost")]
    assert run.evaluator.trials == 0


def test_where_a_run_goes_on_it_is_not_measured_again() -> None:
    run = Run(None, 1000, 1.0, 0.1)
    run.done = run.evaluations.stands_at = 1000  # it was at its end: there is nothing more to train on
    run.evaluations.make(1000, is_last=True)
    assert run.notebook.of("evaluation") == []
    run.evaluations.stands_at = 0
    run.clock.now += 1000
    run.evaluations.make(1000, is_last=True)
    assert [step for step, _ in run.notebook.of("evaluation")] == [999]


def test_without_an_evaluator_nothing_is_due(tmp_path: Path) -> None:
    evaluations = Evaluations(None, Recorder(Notebook(), Progress(5000)), 10, 5000)
    assert not any(map(evaluations.are_due, range(1, 5000)))
    evaluations.make(5000, is_last=True)
