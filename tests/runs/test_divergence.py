"""Numbers that are not finite, put into real runs through hooks: nothing is learned from them, nothing is lost."""

import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import trainer.assemble
from tests.conftest import command_environment, make_texts, write_jsonl
from tests.runs.conftest import SMALL, STEPS, Train, table
from tests.runs.test_resume import equal_runs
from trainer.base.checkpoint_file import read_state, write_state
from trainer.data.tokenizer import Tokenizer
from trainer.learning.step import TrainingStep
from trainer.objectives.next_token import Judgement, NextToken
from trainer.records import StepResult
from trainer.run.checkpoints import CheckpointManager

TEXTS = make_texts(150, seed=3)
NAN, INF = math.nan, math.inf


class WrongLoss(NextToken):
    value = 1.0

    def judge(self, logits: torch.Tensor, targets: torch.Tensor) -> Judgement:
        judged = super().judge(logits, targets)
        return judged._replace(loss=judged.loss * self.value)


class Poisoned(TrainingStep):
    """A step that goes wrong in one place for some documents, each time that they come."""

    place: ClassVar[str] = ""
    value: ClassVar[float] = NAN
    documents: ClassVar[set[tuple[int, ...]]] = set()
    spared: ClassVar[int] = 0
    """So often they come without harm."""

    def __call__(self, ids: Sequence[int], learning_rate: float) -> StepResult:
        if tuple(ids) not in self.documents:
            return super().__call__(ids, learning_rate)
        if self.spared > 0:
            Poisoned.spared -= 1
            return super().__call__(ids, learning_rate)
        hooks, objective = [], self._objective
        if self.place == "logits":
            hooks.append(self.model.model.norm.register_forward_hook(lambda module, given, hidden: hidden * self.value))
        elif self.place == "loss":
            self._objective = WrongLoss()
            self._objective.value = self.value
        elif self.place in ("gradient", "spike"):
            hooks.append(self.model.model.norm.weight.register_hook(lambda gradient: gradient * self.value))
        result = super().__call__(ids, learning_rate)
        for hook in hooks:
            hook.remove()
        self._objective = objective
        if self.place == "parameters":
            with torch.no_grad():
                self._masters[0][7, 3] = self.value
                self._write_weights(self._names)
        return result


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(Tokenizer.train(TEXTS, 400).model_bytes)
    return path


@pytest.fixture
def poisoned(train: Train, tokenizer: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Train with steps that go wrong in `place` at the documents of these rows."""
    monkeypatch.setattr(trainer.assemble, "TrainingStep", Poisoned)
    data = write_jsonl(tmp_path / "texts.jsonl", TEXTS)
    ids = [tuple(Tokenizer.load(tokenizer).encode_prefix(text, 48)) for text in TEXTS]

    def run(*arguments: object, rows: Sequence[int], place: str = "parameters", value: float = NAN) -> int:
        monkeypatch.setattr(Poisoned, "place", place)
        monkeypatch.setattr(Poisoned, "value", value)
        monkeypatch.setattr(Poisoned, "documents", {ids[row] for row in rows})
        return train("--dataset", data, "--tokenizer", tokenizer, *arguments)

    return run


@pytest.fixture(autouse=True)
def a_disk_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow it is: each checkpoint that is asked for here is looked at."""
    monkeypatch.setattr(CheckpointManager.wait_for_disk, "__defaults__", (math.inf,))


def kinds(viz: Path) -> list[tuple[str, str]]:
    return table(viz, "SELECT kind, detail FROM events WHERE kind NOT IN ('checkpoint', 'resume', 'probe left out')")


@pytest.mark.parametrize("value", [NAN, pytest.param(INF, marks=pytest.mark.full)])
@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("logits", "logits not finite, loss not finite, gradient not finite"),
        ("loss", "loss not finite, gradient not finite"),
        ("gradient", "gradient not finite"),
    ],
)
def test_nothing_is_learned_from_it(poisoned: Any, tmp_path: Path, place: str, value: float, words: str) -> None:
    flags = ["--steps", 14, "--checkpoint-interval", 1, "--keep-checkpoints", 99]
    assert poisoned(*flags, rows=[10], place=place, value=value) == 0
    before, after = (read_state(tmp_path / "checkpoints" / f"checkpoint_step_{step}.bin") for step in (10, 11))
    for name, weight in before["model"].items():
        assert torch.equal(weight, after["model"][name])
        for kind, moment in before["optimizer"][name].items():
            is_turn = kind == "step" and "momentum" in before["optimizer"][name]  # the turns go on
            assert is_turn or torch.equal(moment, after["optimizer"][name][kind])
    viz = tmp_path / "training_viz"
    row = f"{tmp_path / 'texts.jsonl'} row 10"
    assert kinds(viz) == [("skipped update", f"Step 10: {words}, no update ({row})")]
    assert after["samples"]["cursor"]["row"] == 11
    assert math.isfinite(after["tally"]["averages"][0][0]) and len(after["tally"]["last"]) == 11 - (place != "gradient")
    if place == "logits":
        assert table(
            viz, "SELECT loss, accuracy, token_ranks FROM steps JOIN documents USING (step) WHERE step = 10"
        ) in (
            [(None, None, None)],
            [(INF, None, None)],
        )
    final = read_state(tmp_path / "checkpoints" / "checkpoint_step_14.bin")
    assert all(torch.isfinite(weight).all() for weight in final["model"].values())
    assert not torch.equal(final["model"]["model.norm.weight"], after["model"]["model.norm.weight"])


@pytest.mark.parametrize("stop", [pytest.param(None, marks=pytest.mark.full), 60])
def test_weights_that_broke_are_rolled_back_and_the_document_is_passed_by(
    poisoned: Any, train: Train, tmp_path: Path, stop: int | None
) -> None:
    """The end is that of a run whose data never held the document; also with a stop after the roll-back."""
    flags = ["--steps", stop or 80, "--checkpoint-interval", 20, "--out", "healed"]
    assert poisoned(*flags, rows=[30]) == 0
    if stop:
        assert train("--resume", "--steps", 80, "--out", "healed") == 0
    viz = tmp_path / "healed" / "training_viz"
    told = [detail for kind, detail in kinds(viz) if kind == "roll-back"]
    assert len(told) == 1 and "checkpoint_step_20.bin" in told[0] and "row 30" in told[0]
    rows = [row for (row,) in table(viz, "SELECT row FROM documents ORDER BY step")]
    held_out = set(range(max(rows))) - set(rows) - {30}
    assert rows == [row for row in range(max(rows) + 1) if row != 30 and row not in held_out]
    state = read_state(tmp_path / "healed" / "checkpoints" / "checkpoint_step_80.bin")
    assert state["samples"]["skipped"] == {"skipped after a rollback": 1} and state["health"]["roll_backs"] == 1
    assert held_out == set() or state["samples"]["held_out"] == len(held_out)

    write_jsonl(tmp_path / "texts.jsonl", [text for row, text in enumerate(TEXTS) if row != 30])
    assert poisoned("--steps", 80, "--out", "without", rows=[]) == 0
    assert table(viz, STEPS) == table(tmp_path / "without" / "training_viz", STEPS)
    without = read_state(tmp_path / "without" / "checkpoints" / "checkpoint_step_80.bin")
    assert all(torch.equal(weight, without["model"][name]) for name, weight in state["model"].items())


def test_a_run_that_was_rolled_back_resumes_exactly(poisoned: Any, train: Train, tmp_path: Path) -> None:
    flags = ["--checkpoint-interval", 20]
    assert poisoned(*flags, "--steps", 80, "--out", "whole", rows=[30, 65], place="parameters") == 0
    assert poisoned(*flags, "--steps", 25, "--out", "parts", rows=[30, 65], place="parameters") == 0
    for steps in (33, 66, 80):
        assert train("--resume", "--steps", steps, "--out", "parts") == 0
    assert read_state(tmp_path / "whole" / "checkpoints" / "checkpoint_step_80.bin")["health"]["roll_backs"] == 2
    equal_runs(tmp_path / "whole", tmp_path / "parts", 80)


def test_after_three_roll_backs_it_ends_with_exit_4(
    poisoned: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert poisoned("--steps", 100, "--checkpoint-interval", 20, rows=range(25, 100)) == 4
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no longer finite, after 3 roll-backs" in error and "--learning-rate" in error
    assert [kind for kind, _ in kinds(tmp_path / "training_viz")].count("roll-back") == 3
    saved = list((tmp_path / "checkpoints").rglob("checkpoint_step_*.bin"))
    assert [path.name for path in saved] == ["checkpoint_step_20.bin"]
    state = read_state(saved[0])
    assert all(torch.isfinite(weight).all() for weight in state["model"].values())
    assert len(state["samples"]["passed_by"]) == 3
    assert "no longer finite" in table(tmp_path / "training_viz", "SELECT outcome FROM run")[0][0]


def test_without_a_checkpoint_to_go_back_to_it_ends_with_exit_4(
    poisoned: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert poisoned("--steps", 50, rows=[5]) == 4
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no checkpoint from before" in error
    assert not list((tmp_path / "checkpoints").glob("*.bin"))


def test_a_model_whose_every_step_fails_goes_back_too(poisoned: Any, tmp_path: Path) -> None:
    """Twenty steps in a row that compute nothing finite: no single document is to blame, so the weights are."""
    # A checkpoint each 19: the one at 38 already holds the last update, that of step 37, and is no way back.
    assert poisoned("--steps", 100, "--checkpoint-interval", 19, rows=range(40, 100), place="logits") == 4
    told = [detail for kind, detail in kinds(tmp_path / "training_viz") if kind == "roll-back"]
    assert len(told) == 3 and "checkpoint_step_19.bin" in told[0] and "last 20 steps" in told[0]
    assert "jsonl row 38" in told[0] and "jsonl row 37" in told[1]  # 39 is held out


def test_weights_are_looked_at_every_hundred_steps(poisoned: Any, tmp_path: Path) -> None:
    assert poisoned("--steps", 130, "--checkpoint-interval", 90, rows=[96]) == 0
    told = [detail for kind, detail in kinds(tmp_path / "training_viz") if kind == "roll-back"]
    assert len(told) == 1 and "checkpoint_step_90.bin" in told[0] and "after 100 documents" in told[0]


@pytest.mark.full
def test_what_was_passed_by_stays_so_when_a_later_roll_back_goes_further(
    poisoned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the second roll-back comes, all checkpoints but the oldest are damaged: it goes back to before the first."""
    load, asked = CheckpointManager.load_newest, []

    def damage_and_load(self: CheckpointManager, refused: Any, at_most: int | None = None) -> Any:
        asked.append(at_most)
        for step, path in self.all():
            if len(asked) == 2 and step > 10:
                path.write_bytes(path.read_bytes()[:-100])
        return load(self, refused, at_most)

    monkeypatch.setattr(CheckpointManager, "load_newest", damage_and_load)
    flags = ["--checkpoint-interval", 10, "--keep-checkpoints", 9]
    assert poisoned(*flags, "--steps", 50, rows=[25, 35]) == 0
    state = read_state(tmp_path / "checkpoints" / "checkpoint_step_50.bin")
    assert state["health"]["roll_backs"] == 2 and len(state["samples"]["passed_by"]) == 2
    events = kinds(tmp_path / "training_viz")
    assert any(kind == "checkpoint refused" and "checkpoint_step_30.bin" in detail for kind, detail in events)
    assert ["checkpoint_step_10.bin" in detail for kind, detail in events if kind == "roll-back"] == [False, True]


@pytest.mark.full
def test_a_checkpoint_without_its_digest_will_do(poisoned: Any, tmp_path: Path) -> None:
    assert poisoned("--steps", 22, "--checkpoint-interval", 20, rows=[]) == 0
    for path in (tmp_path / "checkpoints").glob("*.sha256"):
        path.unlink()
    assert poisoned("--resume", "--steps", 50, rows=[24, 25]) == 0
    assert read_state(tmp_path / "checkpoints" / "checkpoint_step_50.bin")["health"]["roll_backs"] == 2


@pytest.mark.full
def test_a_roll_back_across_the_end_of_an_epoch(poisoned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third of 20 documents breaks the weights when it comes again: back from the second epoch into the first."""
    write_jsonl(tmp_path / "texts.jsonl", TEXTS[:20])
    monkeypatch.setattr(Poisoned, "spared", 1)
    assert poisoned("--steps", 36, "--repeat", "--checkpoint-interval", 15, rows=[3]) == 0
    told = [detail for kind, detail in kinds(tmp_path / "training_viz") if kind in ("epoch", "roll-back")]
    assert [line.split()[0] for line in told] == ["All", "Rolled", "All"]
    assert ["epoch 2 begins" in line for line in told] == [True, False, True]


KILLED = """
import os, signal, sys
from pathlib import Path
import trainer.assemble
from tests.runs.test_divergence import TEXTS, Poisoned
from trainer.run.checkpoints import CheckpointManager
from trainer.data.tokenizer import Tokenizer
from viz.visualizer import TrainingVisualizer
import train_slimpajama

def die_after(owner, name):
    method = getattr(owner, name)
    def call(*arguments, **options):
        result = method(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, call)

tokenizer, where, row, *words = sys.argv[1:]
Poisoned.place = "parameters"
Poisoned.documents = {tuple(Tokenizer.load(Path(tokenizer)).encode_prefix(TEXTS[int(row)], 48))}
trainer.assemble.TrainingStep = Poisoned
if where == "set aside":
    die_after(CheckpointManager, "set_aside_newer")
elif where == "rewind":
    real = TrainingVisualizer.rewind
    def rewind(self, step):
        real(self, step)
        if step:  # not the one that a start makes
            os.kill(os.getpid(), signal.SIGKILL)
    TrainingVisualizer.rewind = rewind
else:
    real_save = CheckpointManager.save
    def save(self, step, *arguments, **options):
        real_save(self, step, *arguments, **options)
        if (self.folder / f"checkpoint_step_{step}.bin").exists():  # once more: the save behind a roll-back
            os.kill(os.getpid(), signal.SIGKILL)
    CheckpointManager.save = save
sys.exit(train_slimpajama.main(words))
"""


@pytest.mark.parametrize(
    "where", ["set aside", pytest.param("rewind", marks=pytest.mark.full), pytest.param("save", marks=pytest.mark.full)]
)
def test_a_kill_in_the_middle_of_a_roll_back(
    poisoned: Any, train: Train, tokenizer: Path, tmp_path: Path, where: str
) -> None:
    flags = ["--steps", 60, "--checkpoint-interval", 20]
    assert poisoned(*flags, "--out", "whole", rows=[30]) == 0
    words = [*SMALL, "--dataset", tmp_path / "texts.jsonl", "--tokenizer", tokenizer, *flags, "--out", "cut"]
    command = [sys.executable, "-c", KILLED, tokenizer, where, "30", *words]
    done = subprocess.run(
        list(map(str, command)), cwd=tmp_path, env=command_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == -9, done.stderr
    assert train("--resume", "--out", "cut") == 0
    equal_runs(tmp_path / "whole", tmp_path / "cut", 60)


def test_a_spike_is_an_event_and_what_becomes_of_it_is_asked_for(poisoned: Any, tmp_path: Path) -> None:
    after = {}
    for spike in ("clip", "skip", "keep"):
        flags = ["--spike", spike, "--steps", 27, "--checkpoint-interval", 1, "--out", spike]
        assert poisoned(*flags, rows=[25], place="spike", value=1000.0) == 0
        ((kind, detail),) = kinds(tmp_path / spike / "training_viz")
        assert kind == "spike" and "gradient norm" in detail and "row 25" in detail
        assert ("no update" in detail) == (spike == "skip")
        folder = tmp_path / spike / "checkpoints"
        before, after[spike] = (read_state(folder / f"checkpoint_step_{step}.bin")["model"] for step in (25, 26))
        moved = not all(torch.equal(weight, before[name]) for name, weight in after[spike].items())
        assert moved == (spike != "skip")
    name = "model.embed_tokens.weight"
    assert torch.equal(after["clip"][name], after["keep"][name])  # both held to a norm of 1: the median is above 1/3


def test_a_resume_with_another_rate_gets_its_roll_backs_again(poisoned: Any, train: Train, tmp_path: Path) -> None:
    assert poisoned("--steps", 60, "--checkpoint-interval", 20, rows=range(25, 50)) == 4
    Poisoned.documents.clear()
    assert train("--resume", "--learning-rate", 1e-4) == 0
    assert read_state(tmp_path / "checkpoints" / "checkpoint_step_60.bin")["health"]["roll_backs"] == 0


def test_weights_that_are_not_finite_are_not_begun_with(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--steps", 3) == 0
    path = tmp_path / "checkpoints" / "checkpoint_step_3.bin"
    state = read_state(path)
    state["model"]["model.norm.weight"][3] = NAN
    write_state(path, state)
    for flags in (["--resume", "--steps", 9], ["--steps", 9, "--pretrained-checkpoint", path]):
        capsys.readouterr()
        assert train(*flags) == 4
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "not finite" in error


def test_a_run_that_ends_worse_than_guessing_says_so(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--steps", 30, "--learning-rate", 10, "--warmup-steps", 0) == 0
    assert "worse than guessing (5.99)" in capsys.readouterr().out
    assert train("--steps", 30) == 0
    assert "guessing" not in capsys.readouterr().out
