"""What an evaluation measures, and when a run is evaluated. For the latter, the test controls the clock."""

import math
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.trainer.model.test_language_model import rough_model
from tests.trainer.test_trainer import Notebook, documents
from trainer.config import MODEL_SIZES
from trainer.data.document_filter import is_held_out
from trainer.data.sample_stream import SampleStream, held_out_samples
from trainer.data.tokenizer import Tokenizer
from trainer.errors import SourceUnreachable, UserError
from trainer.model.language_model import LanguageModel
from trainer.observe.evaluation import AUTOMATIC_EVALUATION, Evaluations, Evaluator, evaluation_interval
from trainer.observe.recorder import Recorder
from trainer.observe.terminal import Progress
from trainer.records import Document, Evaluation, Sample

MOST_TIME = AUTOMATIC_EVALUATION.share_of_time


def held_out(tokenizer: Tokenizer, count: int = 5) -> list[Sample]:
    return held_out_samples(documents(2000), tokenizer, 32, count, own_split=False)


def test_the_held_out_documents_or_the_start_of_a_validation_split_are_evaluated(tokenizer: Tokenizer) -> None:
    evaluated = held_out(tokenizer, 100)
    trained = SampleStream(documents(2000), tokenizer, 32, hold_out=True, should_stop=lambda: False)
    hashes = {sample.text_hash for sample in trained}
    assert len(evaluated) >= 5 and all(is_held_out(sample.text_hash) for sample in evaluated)
    assert not hashes & {sample.text_hash for sample in evaluated}
    assert len(hashes) + len(evaluated) == 2000
    samples = held_out_samples(documents(20), tokenizer, 32, 7, own_split=True)
    assert [sample.document.origin.row for sample in samples] == list(range(7))


@pytest.fixture
def samples(tokenizer: Tokenizer) -> list[Sample]:
    """Documents of three sources and of different lengths, in more than one batch."""
    found = held_out(tokenizer, 18)
    samples = []
    for sample, length, source in zip(found, (2, 5, 31, 32, 9, 17) * 3, ("code", "docs", "books") * 6, strict=False):
        ids, document = sample.ids[:length], replace(sample.document, source=source)
        size = int(tokenizer.piece_bytes[ids[1:]].sum())
        samples.append(replace(sample, ids=ids, predicted_bytes=size, document=document))
    return samples


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> LanguageModel:
    return rough_model(vocab_size=tokenizer.vocab_size)  # new weights predict all tokens alike


def by_hand(model: LanguageModel, samples: list[Sample]) -> tuple[list[float], list[bool], int]:
    """Loss and correctness of every prediction, one document at a time, and the bytes of the predicted tokens."""
    losses, right = [], []
    for sample in samples:
        logits = model(torch.tensor([sample.input_ids]))[0]
        targets = torch.tensor(sample.target_ids)
        losses += torch.nn.functional.cross_entropy(logits, targets, reduction="none").tolist()
        right += (logits.argmax(-1) == targets).tolist()
    return losses, right, sum(sample.predicted_bytes for sample in samples)


def test_every_prediction_counts_equally_in_total_and_by_source(model: LanguageModel, samples: list[Sample]) -> None:
    evaluator = Evaluator(lambda: model, {"validation": samples})
    whole, *parts = evaluator.measure()
    assert [part.source for part in parts] == ["books", "code", "docs"] and whole.source == ""
    for found in (whole, *parts):
        of = [sample for sample in samples if found.source in ("", sample.document.source)]
        losses, right, size = by_hand(model, of)
        # One by one compared with padded batches: equal up to rounding.
        assert found.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
        assert found.bits_per_byte == pytest.approx(sum(losses) / math.log(2) / size, rel=1e-5)
        assert (found.accuracy, found.tokens) == (sum(right) / len(right), len(losses))
        assert (found.bytes, found.documents) == (size, len(of))
    means = [sum(losses) / len(losses) for losses, _, _ in (by_hand(model, [sample]) for sample in samples)]
    assert abs(whole.loss - sum(means) / len(means)) > 0.001  # differs from a mean of means
    assert sum(part.loss * part.tokens for part in parts) / whole.tokens == pytest.approx(whole.loss, rel=1e-12)
    assert evaluator.evaluate("validation") == whole.loss
    with pytest.raises(KeyError):
        evaluator.evaluate("test")


def test_a_stream_gives_the_same_result_as_a_list(model: LanguageModel, samples: list[Sample]) -> None:
    whole = Evaluator(lambda: model, {"all": samples}).measure("all")[0]
    found = Evaluator(lambda: model, {"all": iter(samples)}, sorted_at_once=5).measure("all")[0]
    assert (found.tokens, found.bytes, found.documents) == (whole.tokens, whole.bytes, whole.documents)
    assert found.loss == pytest.approx(whole.loss, rel=1e-6)
    with pytest.raises(UserError, match="nothing to predict"):
        Evaluator(lambda: model, {"all": iter([])}).measure("all")


def test_each_evaluation_measures_the_current_model(samples: list[Sample], tokenizer: Tokenizer) -> None:
    model = LanguageModel(MODEL_SIZES["tiny"], tokenizer.vocab_size, seed=3)
    other = LanguageModel(MODEL_SIZES["tiny"], tokenizer.vocab_size, seed=4)
    evaluator = Evaluator(lambda: model, {"validation": samples})
    first = evaluator.evaluate()
    assert first == pytest.approx(math.log(400), abs=0.5) and evaluator.evaluate() == first
    model.load_state_dict(other.state_dict())
    assert evaluator.evaluate() == Evaluator(lambda: other, {"validation": samples}).evaluate() != first


def test_trial_seconds_estimates_the_duration(samples: list[Sample], tokenizer: Tokenizer) -> None:
    class SlowModel(LanguageModel):
        def hidden(self, ids: torch.Tensor) -> torch.Tensor:
            time.sleep(0.001 * ids.numel())
            return super().hidden(ids)

    model = SlowModel(MODEL_SIZES["tiny"], tokenizer.vocab_size)
    evaluator = Evaluator(lambda: model, {"a": samples, "b": samples})
    took = sum(evaluator.measure(split)[0].seconds for split in "ab")
    assert took > 0.5
    assert 0.65 < evaluator.trial_seconds() < 10  # one batch, the longest, takes 0.25 s, and there are two splits


def test_an_evaluation_changes_no_state(tokenizer: Tokenizer) -> None:
    model = LanguageModel(MODEL_SIZES["tiny"], tokenizer.vocab_size)
    before = [parameter.clone() for parameter in model.parameters()]
    state = torch.get_rng_state()
    evaluator = Evaluator(lambda: model, {"validation": held_out(tokenizer)})
    evaluator.trial_seconds()
    evaluator.evaluate()
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_reading_held_out_documents_has_a_time_limit(tokenizer: Tokenizer) -> None:
    gate = threading.Event()

    def stalled() -> Iterator[Document]:
        yield from documents(400)  # a few of which are held out
        gate.wait(60)

    since = time.monotonic()
    with pytest.raises(SourceUnreachable, match="8 held-out documents did not arrive within 1 seconds"):
        held_out_samples(stalled(), tokenizer, 32, 8, own_split=False, seconds=1)
    assert time.monotonic() - since < 20
    gate.set()
    assert len(held_out_samples(stalled(), tokenizer, 32, 2, own_split=False, seconds=20)) == 2


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class TimedEvaluator(Evaluator):
    """Takes `seconds` per evaluation on the clock of the test, and measures nothing."""

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
        self.evaluator = TimedEvaluator(self.clock, seconds)
        self.notebook = Notebook()
        recorder = Recorder(self.notebook, Progress(num_steps))
        self.evaluations = Evaluations(self.evaluator, recorder, asked, num_steps, clock=self.clock)
        self.done, self.spent = 0, 0.0
        self.shares: list[float] = []

    def train(self, until: int | None = None) -> list[int]:
        """Returns the steps that were measured so far."""
        if self.done == 0:
            self.clock.now += 500  # time before the run does not count
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


def test_the_automatic_interval_depends_on_the_length_of_the_run() -> None:
    assert [evaluation_interval(None, steps) for steps in (1, 999, 1000, 10**6)] == [0, 0, 500, 500]
    assert [evaluation_interval(asked, 5000) for asked in (0, 7)] == [0, 7]
    assert evaluation_interval(7, 100) == 7
    for run in (Run(None, 999, 1.0, 0.1), Run(0, 5000, 1.0, 0.1)):
        assert run.train() == [] and run.events() == [] and run.evaluator.trials == 0


def test_cheap_evaluations_run_at_each_interval_and_once_at_the_end() -> None:
    run = Run(None, 2700, 0.1, 0.1)
    assert run.train() == [499, 999, 1499, 1999, 2499, 2699]
    assert run.events() == [] and run.evaluator.trials == 1
    assert Run(None, 2000, 0.1, 0.1).train() == [499, 999, 1499, 1999]
    assert Run(5, 12, 1.0, 0.01).train() == [4, 9, 11]


@pytest.mark.parametrize("seconds", [0.4, 0.99, 2.0, 3.3, 5.0])  # of 64 documents; a step on one takes 0.1
def test_automatic_evaluations_never_exceed_their_share(seconds: float) -> None:
    run = Run(None, 10_000, 0.1, seconds)
    measured = run.train()
    assert max(run.shares) <= MOST_TIME
    assert len(measured) == 20 or run.shares[-1] > MOST_TIME / 2  # they run if there is time
    assert measured[-1] == 9999  # time is reserved for it
    skipped = [step for step, kind, _ in run.events() if kind == "evaluation left out"]
    assert sorted(skipped + [step + 1 for step in measured]) == list(range(500, 10_001, 500))


def test_a_skipped_evaluation_is_printed_once_and_recorded_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(None, 3000, 0.1, 100.0)
    assert run.train() == [] and run.evaluator.trials == 1
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert printed.startswith("Skipped the evaluation after 500 documents: it takes about 1.7m") and "2%" in printed
    skipped = [(done, "evaluation left out") for done in range(500, 3001, 500)]
    assert [(step, kind) for step, kind, _ in run.events()] == skipped


def test_a_slow_evaluation_is_compensated_by_skipping_later_ones() -> None:
    run = Run(None, 20_000, 0.1, 1.0)
    run.train(until=2000)
    run.evaluator.seconds = 10.0  # the machine is busy
    run.train(until=2500)
    assert run.shares[-1] > MOST_TIME
    run.evaluator.seconds = 1.0
    measured = run.train()
    assert run.shares[-1] <= MOST_TIME
    assert measured[:3] == [1499, 1999, 2499] and measured[3] > 8000 and measured[-1] == 19_999


def test_requested_evaluations_run_whatever_they_cost(capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(10, 40, 1.0, 5.0)
    assert run.train() == [9, 19, 29, 39]
    printed = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("After")]
    assert printed == ["Evaluations have used 33.3% of the time so far; the last one took 5.0s"]
    assert [(step, kind) for step, kind, _ in run.events()] == [(10, "evaluation cost")]
    assert run.evaluator.trials == 0


def test_without_an_evaluator_nothing_is_due() -> None:
    evaluations = Evaluations(None, Recorder(Notebook(), Progress(5000)), 10, 5000)
    assert not any(map(evaluations.are_due, range(1, 5000)))
    evaluations.make(5000, is_last=True)
