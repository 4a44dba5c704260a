"""The training loop, with a list as the visualizer (the protocol is in `trainer/records.py`)."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import make_texts
from trainer.base.checkpoint_file import read_state
from trainer.config import TrainingConfig
from trainer.data.sample_stream import SampleStream
from trainer.data.tokenizer import Tokenizer
from trainer.errors import Diverged, MachineError, SourceUnreachable
from trainer.learning.step import TrainingStep
from trainer.model.language_model import LanguageModel
from trainer.observe.forgetting import Probes
from trainer.observe.terminal import Progress
from trainer.records import Cursor, Document, Origin
from trainer.run.checkpoints import CheckpointManager
from trainer.trainer import Trainer


class Notebook:
    """A visualizer that lists its calls."""

    def __init__(
        self,
        *,
        full_after: float = math.inf,
        can_recover: bool = False,
        on_step: Callable[[int], object] = lambda step: None,
        on_flush: Callable[[], object] = lambda: None,
    ) -> None:
        """`full_after`: the step whose row fills the disk. `on_step` and `on_flush` run inside these calls."""
        self.calls: list[tuple[Any, ...]] = []
        self.full_after, self.can_recover, self.is_full = full_after, can_recover, False
        self.on_step, self.on_flush = on_step, on_flush

    def update(self, metrics: Mapping[str, Any], input_text: str = "", output_text: str = "") -> None:
        self.calls.append(("update", dict(metrics), input_text, output_text))
        if "loss" in metrics:
            self.on_step(metrics["step"])
            self.is_full |= metrics["step"] == self.full_after
        self.refuse()

    def record_event(self, step: int, kind: str, detail: str) -> None:
        self.calls.append(("event", step, kind, detail))

    def record_evaluation(self, step: int, parts: Sequence[Mapping[str, Any]]) -> None:
        self.calls.append(("evaluation", step, [dict(part) for part in parts]))

    def record_probe(self, step: int, document: int, loss: float, accuracy: float, token_losses: Any) -> None:
        self.calls.append(("probe", step, document, loss, accuracy, token_losses))
        self.refuse()

    def generate_charts(self, step: int) -> None:
        self.calls.append(("charts", step))

    def save_metrics_json(self) -> None:
        self.calls.append(("json",))

    def refuse(self) -> None:
        """Like the real store: after one failure, every later call fails too."""
        if self.is_full:
            raise OSError(28, "No space left on device")

    def flush(self) -> None:
        self.on_flush()
        self.refuse()
        self.calls.append(("flush",))

    def recover(self) -> None:
        self.is_full = self.is_full and not self.can_recover
        self.refuse()

    def rewind(self, step: int) -> None:
        self.calls.append(("rewind", step))

    def close(self, outcome: str = "done") -> None:
        self.calls.append(("close", outcome))
        self.refuse()

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == kind]


def documents(count: int, error: Exception | None = None) -> Iterator[Document]:
    for row, text in enumerate(make_texts(count)):
        yield Document(text, "here", Origin("file", row), Cursor(row=row + 1))
    if error is not None:
        raise error


def make_trainer(
    tokenizer: Tokenizer,
    folder: Path,
    source: Iterator[Document],
    make_probes: Any = Probes,
    viz: Notebook | None = None,
    **settings: Any,
) -> Trainer:
    config = TrainingConfig(**{"model_size": "tiny", "max_seq_length": 32, "warmup_steps": 5, **settings})
    model = LanguageModel(config.shape, tokenizer.vocab_size)
    return Trainer(
        config,
        model=model,
        tokenizer=tokenizer,
        samples=SampleStream(source, tokenizer, 32, hold_out=False, should_stop=lambda: False),
        step=TrainingStep(model, dtype=torch.float32, max_seq_length=32),
        viz=viz or Notebook(),
        checkpoints=CheckpointManager(folder),
        progress=Progress(config.num_steps),
        make_probes=make_probes,
    )


def notebook(trainer: Trainer) -> Notebook:
    assert isinstance(trainer.viz, Notebook)
    return trainer.viz


def test_each_action_happens_when_it_is_due(tokenizer: Tokenizer, tmp_path: Path) -> None:
    intervals = {"viz_interval": 4, "checkpoint_interval": 3, "display_samples": 5}
    trainer = make_trainer(tokenizer, tmp_path, documents(20), num_steps=10, prompt=("Document",), **intervals)
    assert trainer.train() == "done"
    viz = notebook(trainer)
    assert viz.of("charts") == [(4,), (8,)]  # `close` draws the last one
    assert [step for step, kind, _ in viz.of("event") if kind == "checkpoint"] == [3, 6, 9, 10]
    written = [(call[0]["step"], call[0]["prompt"]) for call in viz.of("update") if "prompt" in call[0]]
    assert [step for step, _ in written] == [0, 0, 5, 5]
    assert [prompt for _, prompt in written][1::2] == ["Document"] * 2
    assert [call[0]["step"] for call in viz.of("update") if "loss" in call[0]] == list(range(10))
    assert viz.calls[-1] == ("close", "done")
    assert trainer.global_step == 10 and len(trainer.step_times) == 10


def test_text_is_generated_before_the_model_learns(tokenizer: Tokenizer, tmp_path: Path) -> None:
    trainer = make_trainer(tokenizer, tmp_path, documents(3), num_steps=1, warmup_steps=0, prompt=("Document 2",))
    ids = tokenizer.EncodeAsIds(make_texts(1)[0])[:32]
    untouched = LanguageModel(trainer.config.shape, tokenizer.vocab_size)
    expected = untouched.generate(ids[:10], 40, seed=0)[10:]
    assert trainer.model.generate(ids[:10], 40, seed=0)[10:] == expected
    trainer.train()
    assert trainer.model.generate(ids[:10], 40, seed=0)[10:] != expected  # the weights have changed since
    own, asked = (call for call in notebook(trainer).of("update") if "prompt" in call[0])
    assert own[2] == tokenizer.DecodeIds(expected)
    assert own[0]["prompt"] == tokenizer.DecodeIds(ids[:10]) and own[1] == tokenizer.DecodeIds(ids[:31])
    assert own[0]["reference"] == tokenizer.DecodeIds(ids[10:])
    prompt_ids = tokenizer.EncodeAsIds("Document 2")
    answer = untouched.generate(prompt_ids, len(prompt_ids) + 30, seed=0)[len(prompt_ids) :]
    assert asked[1:] == ("Document 2", tokenizer.DecodeIds(answer))


def test_the_first_prompt_is_repeated_at_growing_intervals(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def asked(folder: str, **settings: Any) -> tuple[Trainer, dict[int, tuple[str, str]]]:
        (tmp_path / folder).mkdir()
        trainer = make_trainer(tokenizer, tmp_path / folder, documents(30), display_samples=2, **settings)
        trainer.train()
        calls = [call for call in notebook(trainer).of("update") if "prompt" in call[0] and not call[1]]
        return trainer, {call[0]["step"]: (call[0]["prompt"], call[2]) for call in calls}

    trainer, found = asked("whole", num_steps=27)
    assert list(found) == [2, 4, 6, 8, 12, 16, 24]
    first = tokenizer.EncodeAsIds(make_texts(1)[0])[:10]
    assert {prompt for prompt, _ in found.values()} == {tokenizer.DecodeIds(first)}
    assert len({written for _, written in found.values()}) > 1  # it learns
    assert all("reference" not in call[0] for call in notebook(trainer).of("update") if not call[1])
    assert asked("own", num_steps=9, prompt=("Document 2",))[1] == {}  # the user's prompts replace it


def test_a_resumed_run_repeats_the_same_first_prompt(tokenizer: Tokenizer, tmp_path: Path) -> None:
    half = make_trainer(tokenizer, tmp_path, documents(30), num_steps=3, display_samples=2)
    half.train()
    other = make_trainer(tokenizer, tmp_path / "b", documents(30), num_steps=20, display_samples=2)
    other.load_state_dict(half.state_dict())
    sample = next(iter(other.samples))
    prompts = {generation.prompt for generation in other.display.show(sample, 4)[1:]}
    assert prompts == {tokenizer.DecodeIds(tokenizer.EncodeAsIds(make_texts(1)[0])[:10])}
    other.display.load_state_dict({"first_prompt": [10**9]})  # from an untrusted file
    assert len(other.display.show(sample, 4)) == 1


def test_the_row_of_a_step(tokenizer: Tokenizer, tmp_path: Path) -> None:
    trainer = make_trainer(tokenizer, tmp_path, documents(3), num_steps=3)
    trainer.train()
    metrics = notebook(trainer).of("update")[1][0]
    assert metrics["step"] == 1 and metrics["row"] == 1 and metrics["source"] == "here"
    assert metrics["token_ids"] == tokenizer.EncodeAsIds(make_texts(3)[1])[:32]
    assert metrics["tokens"] == 31 == len(metrics["token_losses"]) == len(metrics["token_ranks"])
    assert metrics["loss"] == pytest.approx(metrics["token_losses"].mean(), rel=1e-5)
    assert metrics["throughput"] == pytest.approx(31 / metrics["seconds"])
    assert metrics["learning_rate"] == pytest.approx(0.001 / 5)


def test_the_public_methods_of_the_contract(tokenizer: Tokenizer, tmp_path: Path) -> None:
    trainer = make_trainer(tokenizer, tmp_path, documents(1), num_steps=10, warmup_steps=1000)
    ids = tokenizer.EncodeAsIds(make_texts(1)[0])[:20]
    loss, accuracy = trainer.train_step(ids[:-1], ids[1:])
    assert isinstance(loss, float) and 0 <= accuracy <= 1 and loss == pytest.approx(math.log(400), abs=0.5)
    assert trainer.train_step(ids[:-1], ids[1:])[0] < loss
    assert trainer.global_step == 0
    assert [trainer.get_learning_rate(step) for step in (0, 100, 1000, 5000)] == pytest.approx([1e-6, 1e-4, 1e-3, 1e-3])
    assert trainer.format_time(2268) == "37.8m"
    for inputs, targets in (([1, 2], [3, 4]), ([], []), (list(range(40)), list(range(1, 41)))):
        with pytest.raises(ValueError):
            trainer.train_step(inputs, targets)


def test_a_failed_generation_records_its_error_and_no_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    trainer = make_trainer(tokenizer, tmp_path, documents(2), num_steps=1)
    with torch.no_grad():
        for model in (trainer.model, trainer.step.averaged()):
            model.model.norm.weight.fill_(math.nan)
    with pytest.raises(Diverged, match="no earlier checkpoint"):  # a state that is not finite is never saved
        trainer.train()
    metrics, given, written = notebook(trainer).of("update")[0]
    assert "not finite" in metrics["error"] and written == "" and given
    assert not list(tmp_path.glob("*.bin")) and metrics["token_ranks"] is None and math.isnan(metrics["accuracy"])
    assert next(kind for _, kind, _ in notebook(trainer).of("event")) == "skipped update"


def test_a_final_attempt_saves_everything_trained_so_far(tokenizer: Tokenizer, tmp_path: Path) -> None:
    shown = {"display_samples": 1, "prompt": ("One", "Two"), "viz": Notebook(full_after=5, can_recover=True)}
    trainer = make_trainer(tokenizer, tmp_path, documents(9), num_steps=9, checkpoint_interval=2, **shown)
    with pytest.raises(MachineError, match="No space left"):
        trainer.train()
    state = read_state(tmp_path / "checkpoint_step_6.bin")
    assert state["step"] == 6 and state["samples"]["cursor"]["row"] == 6 and state["tally"]["totals"][0] == 6
    assert [call[0]["step"] for call in notebook(trainer).of("update") if "loss" in call[0]] == list(range(6))
    assert [call[1] for call in notebook(trainer).of("update") if call[0]["step"] == 5][1:] == ["One", "Two"]


def test_a_save_that_failed_during_a_wait_for_the_source_is_repeated(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The disk fails once, in the save at step 5; then the source is lost before another step could report it."""
    source, failed = documents(5, SourceUnreachable("gone")), threading.Event()

    def slow() -> Iterator[Document]:
        yield from islice(source, 5)
        assert failed.wait(60)
        yield from source

    def fail_once() -> None:
        if not failed.is_set():
            failed.set()
            raise OSError(28, "No space left on device")

    viz = Notebook(on_flush=fail_once)
    trainer = make_trainer(tokenizer, tmp_path, slow(), viz=viz, num_steps=20, checkpoint_interval=5)
    with pytest.raises(SourceUnreachable, match="gone"):
        trainer.train()
    assert [step for step, _ in trainer.checkpoints.all()] == [5]


def test_a_save_in_progress_is_finished_whatever_happens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    viz = Notebook(on_flush=lambda: time.sleep(1.0))
    source = documents(9, MemoryError())
    trainer = make_trainer(tokenizer, tmp_path, source, viz=viz, num_steps=20, checkpoint_interval=9)
    with pytest.raises(MemoryError):
        trainer.train()
    assert [step for step, _ in trainer.checkpoints.all()] == [9]
    assert viz.calls[-1] == ("close", "out of memory")


def test_a_save_that_fails_ends_the_run_at_the_next_step(tokenizer: Tokenizer, tmp_path: Path) -> None:
    trainer = make_trainer(tokenizer, tmp_path / "missing", documents(300), num_steps=300, checkpoint_interval=2)
    with pytest.raises(MachineError, match="No such file"):
        trainer.train()
    assert trainer.global_step < 100


def test_training_continues_while_a_save_waits_for_its_rows(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Another process holds the store: the checkpoint at 10 waits, and the one at 20 follows when the store is free."""
    free = threading.Event()
    viz = Notebook(on_step=lambda step: step == 40 and free.set(), on_flush=lambda: free.wait(60))
    trainer = make_trainer(tokenizer, tmp_path, documents(60), viz=viz, num_steps=60, checkpoint_interval=10)
    assert trainer.train() == "done"
    events = [(step, kind) for step, kind, _ in viz.of("event") if kind.startswith("checkpoint")]
    assert events[0] == (20, "checkpoint postponed") and events[1] == (10, "checkpoint")
    later = [step for step, kind in events[2:] if kind == "checkpoint"]
    assert later[0] in range(41, 60) and later[-1] == 60 and len(events) == 2 + len(later)


def test_documents_skipped_at_the_end_are_counted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    texts = [*make_texts(4), "short", "tiny"]
    source = (Document(text, "here", Origin("file", row), Cursor(row=row + 1)) for row, text in enumerate(texts))
    trainer = make_trainer(tokenizer, tmp_path, source, num_steps=20)
    assert trainer.train() == "documents ended"
    samples = read_state(tmp_path / "checkpoint_step_4.bin")["samples"]
    assert samples["cursor"]["row"] == 6 and samples["skipped"] == {"shorter than 10 characters": 2}


def test_a_bug_saves_no_checkpoint(tokenizer: Tokenizer, tmp_path: Path) -> None:
    trainer = make_trainer(tokenizer, tmp_path, documents(7, ZeroDivisionError("ours")), num_steps=20)
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert not list(tmp_path.glob("*.bin"))
    assert notebook(trainer).calls[-1] == ("close", "defect")
