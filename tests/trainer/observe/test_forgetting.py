"""Re-measured documents: which, when, how much of the time they use, and what is measured."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import make_texts
from tests.trainer.observe.test_evaluation import Clock
from tests.trainer.test_trainer import Notebook, documents, make_trainer, notebook
from trainer.config import MODEL_SIZES
from trainer.data.tokenizer import Tokenizer
from trainer.model.language_model import LanguageModel
from trainer.objectives.next_token import NextToken
from trainer.observe.forgetting import MOST_TIME, Probes
from trainer.records import Cursor, Document, Origin, Sample
from trainer.trainer import Trainer

DISTANCES = [0, *(2**power for power in range(14))]


class TimedProbes(Probes):
    """Takes `seconds` per measurement on the clock of the test, and measures nothing."""

    def __init__(self, clock: Clock, seconds: float, num_steps: int, **options: Any) -> None:
        self.notebook, self.seconds, self.now = Notebook(), seconds, clock
        model = LanguageModel(MODEL_SIZES["tiny"], 400)
        super().__init__(model, self.notebook, num_steps, max_seq_length=32, clock=clock, **options)

    def _judge(self, ids: Sequence[int]) -> tuple[float, float, Any]:
        self.now.now += self.seconds
        return 3.0, 0.5, np.zeros(len(ids) - 1, np.float32)


class Run:
    """Steps of a tenth of a second each, with measurements of `seconds`."""

    def __init__(self, num_steps: int, seconds: float, **options: Any) -> None:
        self.clock = Clock()
        self.probes = TimedProbes(self.clock, seconds, num_steps, **options)
        self.done, self.shares, self.num_steps = 0, [0.0], num_steps

    def train(self, until: int | None = None) -> list[tuple[int, int]]:
        """Returns (document, distance) of all measurements so far, in order."""
        self.clock.now += 500  # time before the run does not count
        self.probes.start()
        began, spent = self.clock.now, 0.0
        while self.done < (until or self.num_steps):
            self.clock.now += 0.1
            self.done += 1
            before = self.clock.now
            self.probes.follow(sample_of([self.done % 7, 1, 2]), self.done)
            spent += self.clock.now - before
            self.shares.append(spent / (self.clock.now - began))
        return [(document, step - document) for step, document, *_ in self.probes.notebook.of("probe")]

    def events(self) -> list[tuple[Any, ...]]:
        return self.probes.notebook.of("event")


def sample_of(ids: list[int]) -> Sample:
    document = Document("text", "here", Origin("file", 0), Cursor())
    return Sample(document, ids, b"", 0, 0, {})


def test_four_documents_are_re_measured_at_growing_distances() -> None:
    run = Run(10_000, 0.02)
    found = run.train()
    chosen = [200, 1000, 3000, 6000]
    assert sorted(found) == [(first, k) for first in chosen for k in DISTANCES if first + k < 10_000]
    assert run.events() == [] and max(run.shares) <= MOST_TIME
    assert list(run.probes.documents.values()) == [[(first + 1) % 7, 1, 2] for first in chosen]


def test_a_smoke_run_has_time_for_one_document() -> None:
    run = Run(100, 0.02)
    found = run.train()
    assert len({document for document, _ in found}) == 1 and 3 <= len(found) <= 8
    assert found[0][1] == 0 and max(run.shares) <= MOST_TIME


@pytest.mark.parametrize("seconds", [0.001, 0.02, 0.05, 0.1, 0.3])
def test_measurements_never_exceed_their_share(seconds: float) -> None:
    run = Run(3000, seconds)
    found = run.train()
    earned = int(seconds / (MOST_TIME * 0.1)) + 1  # steps until the first one, of unknown cost, is paid
    assert max(run.shares[earned:]) <= MOST_TIME and len(found) >= 5


def test_without_a_budget_they_exceed_it() -> None:
    run = Run(3000, 0.3, share_of_time=100.0)
    run.train()
    assert max(run.shares[301:]) > MOST_TIME


def test_the_first_skipped_measurement_is_recorded_and_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(1000, 0.5)
    run.train()
    assert [kind for _, kind, _ in run.events()] == ["probe left out"]
    assert capsys.readouterr().out == ""


def test_a_resumed_run_continues_measuring() -> None:
    whole, parts = Run(4000, 0.02), Run(4000, 0.02)
    assert parts.train(until=1000)
    other = Run(4000, 0.02)
    other.done = 1000
    other.probes.load_state_dict(parts.probes.state_dict())
    found = parts.train(until=1000) + other.train()
    missing = set(whole.train()) - set(found)
    assert all(1000 <= first + k < 1100 for first, k in missing)  # the budget starts again from 0
    assert {(80, 2048), (400, 1024), (1200, 0), (2400, 1024)} <= set(found)


def test_a_rollback_drops_the_documents_chosen_later() -> None:
    run = Run(4000, 0.02)
    run.train(until=300)
    state = run.probes.state_dict()
    run.train(until=1300)
    assert list(run.probes.documents) == [80, 400, 1200]
    run.probes.load_state_dict(state)
    assert list(run.probes.documents) == [80]


@pytest.mark.parametrize(
    "wrong", [[400, 1], [10**30, 1], [1], [], [1] * 33], ids=["no id", "huge", "too short", "empty", "too long"]
)
def test_ids_that_can_not_belong_to_this_run_are_dropped(tokenizer: Tokenizer, wrong: list[int]) -> None:
    model = LanguageModel(MODEL_SIZES["tiny"], 400)
    probes = Probes(model, viz := Notebook(), 100, max_seq_length=32, clock=lambda: 0.0)
    several = [{"step": 5, "ids": wrong}, *({"step": step, "ids": [399, 0]} for step in (10**30, 6, 7, 8))]
    probes.load_state_dict({"documents": several})
    assert probes.documents == {10**30: [399, 0], 6: [399, 0], 7: [399, 0]}  # at most four are read
    probes.follow(sample_of([1, 2, 3]), 8)
    assert [(step, document) for step, document, *_ in viz.of("probe")] == [(7, 6), (7, 7)]


def train_with_all_probes(tokenizer: Tokenizer, folder: Path, count: int) -> Trainer:
    """A run that makes every measurement, whatever it costs."""
    folder.mkdir(exist_ok=True)
    settings = {"num_steps": count, "initial_learning_rate": 0.01}
    make_probes = partial(Probes, share_of_time=100.0)
    trainer = make_trainer(tokenizer, folder, documents(count), make_probes=make_probes, **settings)
    assert trainer.train() == "done"
    return trainer


def test_the_current_weights_are_measured(tokenizer: Tokenizer, tmp_path: Path) -> None:
    trainer = train_with_all_probes(tokenizer, tmp_path, 66)
    rows = notebook(trainer).of("probe")
    (first, ids), *_ = trainer.probes.documents.items()
    assert [step - document for step, document, *_ in rows if document == first][:4] == [0, 1, 2, 4]
    assert ids == tokenizer.EncodeAsIds(make_texts(66)[first])[:32]
    learned = next(call[0] for call in notebook(trainer).of("update") if call[0]["step"] == first)
    assert rows[0][2] < learned["loss"] - 0.05  # after its own update, before any other

    def judge(model: LanguageModel) -> float:
        with torch.no_grad():
            return NextToken().judge(model(torch.tensor([ids[:-1]]))[0], torch.tensor(ids[1:])).loss.item()

    step, document, loss, accuracy, token_losses = [row for row in rows if row[1] == first][-1]
    trainer = train_with_all_probes(tokenizer, tmp_path / "again", step + 1)  # up to the same step
    assert document == first and loss == judge(trainer.step.model)
    assert loss != judge(trainer.step.averaged())
    assert token_losses.shape == (len(ids) - 1,) and token_losses.mean() == pytest.approx(loss, rel=1e-5)
    assert 0 <= accuracy <= 1


def test_a_document_stays_chosen_if_the_store_fails(tokenizer: Tokenizer, tmp_path: Path) -> None:
    make_probes = partial(Probes, share_of_time=100.0)
    trainer = make_trainer(tokenizer, tmp_path, documents(60), num_steps=60, make_probes=make_probes)
    notebook(trainer).is_full = True
    with pytest.raises(OSError, match="No space"):
        trainer.probes.follow(sample_of([1, 2, 3]), 5)
    assert trainer.probes.state_dict() == {"documents": [{"step": 4, "ids": [1, 2, 3]}]}
