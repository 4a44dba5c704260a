"""Numbers that are not finite, put into real runs through hooks: they change no weight, and no document is lost."""

import functools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import make_texts, write_jsonl
from tests.runs.conftest import QUICK, SMALL, STEPS, Capture, Train, error_line, run_code, table
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


@dataclass
class Poison:
    """What goes wrong in the steps on some documents."""

    place: str
    documents: Collection[tuple[int, ...]]
    """Their ids."""
    value: float = NAN
    spared: int = 0
    """How often one of them passes without harm first."""


class Poisoned(TrainingStep):
    """A step in which one place gets a wrong number for some documents."""

    def __init__(self, *arguments: Any, poison: Poison, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._poison = poison

    def __call__(self, ids: Sequence[int], learning_rate: float) -> StepResult:
        place, value = self._poison.place, self._poison.value
        if tuple(ids) not in self._poison.documents:
            return super().__call__(ids, learning_rate)
        if self._poison.spared > 0:
            self._poison.spared -= 1
            return super().__call__(ids, learning_rate)
        hooks, objective, norm = [], self._objective, self.model.model.norm
        if place == "logits":
            hooks.append(norm.register_forward_hook(lambda module, given, hidden: hidden * value))
        elif place == "loss":
            self._objective = WrongLoss()
            self._objective.value = value
        elif place in ("gradient", "spike"):
            hooks.append(norm.weight.register_hook(lambda gradient: gradient * value))
        result = super().__call__(ids, learning_rate)
        for hook in hooks:
            hook.remove()
        self._objective = objective
        if place == "parameters":
            with torch.no_grad():
                self._masters[0][7, 3] = value
                self._write_weights(self._names)
        return result


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(Tokenizer.train(TEXTS, 400).model_bytes)
    return path


@pytest.fixture
def poisoned(train: Train, tokenizer: Path, tmp_path: Path) -> Any:
    """Train with steps that go wrong in `place` at the documents of these rows. Every checkpoint that is due is
    written, however slow the disk is."""
    data = write_jsonl(tmp_path / "texts.jsonl", TEXTS)
    ids = [tuple(Tokenizer.load(tokenizer).encode_prefix(text, 48)) for text in TEXTS]

    def run(
        *arguments: object,
        rows: Sequence[int] = (),
        place: str = "parameters",
        checkpoints: Callable[..., CheckpointManager] = CheckpointManager,
        **poison: Any,
    ) -> int:
        builders = replace(
            QUICK,
            training_step=functools.partial(
                Poisoned, poison=Poison(place, documents={ids[row] for row in rows}, **poison)
            ),
            checkpoints=functools.partial(checkpoints, patience=math.inf),
        )
        flags = [] if "--resume" in arguments else ["--dataset", data, "--tokenizer", tokenizer]
        return train(*flags, *arguments, builders=builders)

    return run


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
def test_a_number_that_is_not_finite_changes_no_weight(
    poisoned: Any, tmp_path: Path, place: str, value: float, words: str
) -> None:
    flags = ["--steps", 14, "--checkpoint-interval", 1, "--keep-checkpoints", 99]
    assert poisoned(*flags, rows=[10], place=place, value=value) == 0
    before, after = (read_state(tmp_path / "checkpoints" / f"checkpoint_step_{step}.bin") for step in (10, 11))
    for name, weight in before["model"].items():
        assert torch.equal(weight, after["model"][name])
        for kind, moment in before["optimizer"][name].items():
            is_turn = kind == "step" and "momentum" in before["optimizer"][name]  # the turns continue
            assert is_turn or torch.equal(moment, after["optimizer"][name][kind])
    viz = tmp_path / "training_viz"
    row = f"{tmp_path / 'texts.jsonl'} row 10"
    assert kinds(viz) == [("skipped update", f"Skipped update at step 10 ({row}): {words}")]
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


@pytest.mark.parametrize("stop", [pytest.param(None, marks=pytest.mark.full), 40])
def test_broken_weights_are_rolled_back_and_the_document_is_skipped(
    poisoned: Any, tmp_path: Path, stop: int | None
) -> None:
    """The result equals that of a run whose data never contained the document, also if it stops after the rollback."""
    flags = ["--steps", stop or 50, "--checkpoint-interval", 20, "--out", "healed"]
    assert poisoned(*flags, rows=[30]) == 0
    if stop:
        assert poisoned("--resume", "--steps", 50, "--out", "healed", rows=[30]) == 0
    viz = tmp_path / "healed" / "training_viz"
    told = [detail for kind, detail in kinds(viz) if kind == "roll-back"]
    assert len(told) == 1 and "checkpoint_step_20.bin" in told[0] and "row 30" in told[0]
    rows = [row for (row,) in table(viz, "SELECT row FROM documents ORDER BY step")]
    held_out = set(range(max(rows))) - set(rows) - {30}
    assert rows == [row for row in range(max(rows) + 1) if row != 30 and row not in held_out]
    state = read_state(tmp_path / "healed" / "checkpoints" / "checkpoint_step_50.bin")
    assert state["samples"]["skipped"] == {"skipped after a rollback": 1} and state["health"]["roll_backs"] == 1
    assert held_out == set() or state["samples"]["held_out"] == len(held_out)

    write_jsonl(tmp_path / "texts.jsonl", [text for row, text in enumerate(TEXTS) if row != 30])
    assert poisoned("--steps", 50, "--out", "without") == 0
    assert table(viz, STEPS) == table(tmp_path / "without" / "training_viz", STEPS)
    without = read_state(tmp_path / "without" / "checkpoints" / "checkpoint_step_50.bin")
    assert all(torch.equal(weight, without["model"][name]) for name, weight in state["model"].items())


def test_a_run_that_rolled_back_resumes_exactly(poisoned: Any, tmp_path: Path) -> None:
    flags = ["--checkpoint-interval", 10]
    assert poisoned(*flags, "--steps", 36, "--out", "whole", rows=[15, 28]) == 0
    assert poisoned(*flags, "--steps", 13, "--out", "parts", rows=[15, 28]) == 0
    for steps in (17, 29, 36):
        assert poisoned("--resume", "--steps", steps, "--out", "parts", rows=[15, 28]) == 0
    assert read_state(tmp_path / "whole" / "checkpoints" / "checkpoint_step_36.bin")["health"]["roll_backs"] == 2
    equal_runs(tmp_path / "whole", tmp_path / "parts", 36)


def test_after_three_rollbacks_the_run_ends_with_exit_4(poisoned: Any, tmp_path: Path, capsys: Capture) -> None:
    assert poisoned("--steps", 100, "--checkpoint-interval", 20, rows=range(25, 100)) == 4
    error = error_line(capsys)
    assert "no longer finite, after 3 rollbacks" in error and "--learning-rate" in error
    assert [kind for kind, _ in kinds(tmp_path / "training_viz")].count("roll-back") == 3
    saved = list((tmp_path / "checkpoints").rglob("checkpoint_step_*.bin"))
    assert [path.name for path in saved] == ["checkpoint_step_20.bin"]
    state = read_state(saved[0])
    assert all(torch.isfinite(weight).all() for weight in state["model"].values())
    assert len(state["samples"]["passed_by"]) == 3
    assert "no longer finite" in table(tmp_path / "training_viz", "SELECT outcome FROM run")[0][0]


def test_without_an_earlier_checkpoint_the_run_ends_with_exit_4(poisoned: Any, tmp_path: Path, capsys: Capture) -> None:
    assert poisoned("--steps", 50, rows=[5]) == 4
    assert "no earlier checkpoint" in error_line(capsys)
    assert not list((tmp_path / "checkpoints").glob("*.bin"))


def test_twenty_failed_steps_in_a_row_cause_a_rollback(poisoned: Any, tmp_path: Path) -> None:
    """No single document can be the cause, so it must be the weights."""
    # A checkpoint every 19 steps: the one at 38 already contains the last update, that of step 37.
    assert poisoned("--steps", 100, "--checkpoint-interval", 19, rows=range(40, 100), place="logits") == 4
    told = [detail for kind, detail in kinds(tmp_path / "training_viz") if kind == "roll-back"]
    assert len(told) == 3 and "checkpoint_step_19.bin" in told[0] and "last 20 steps" in told[0]
    assert "jsonl row 38" in told[0] and "jsonl row 37" in told[1]  # 39 is held out


def test_weights_are_checked_every_hundred_steps(poisoned: Any, tmp_path: Path) -> None:
    assert poisoned("--steps", 105, "--checkpoint-interval", 90, rows=[96]) == 0
    told = [detail for kind, detail in kinds(tmp_path / "training_viz") if kind == "roll-back"]
    assert len(told) == 1 and "checkpoint_step_90.bin" in told[0] and "after 100 documents" in told[0]


class Damaging(CheckpointManager):
    """Damages all checkpoints but the oldest before the second rollback reads one."""

    rollbacks = 0

    def load_newest(self, refused: Any, at_most: int | None = None) -> Any:
        self.rollbacks += 1
        for step, path in self.all():
            if self.rollbacks == 2 and step > 10:
                path.write_bytes(path.read_bytes()[:-100])
        return super().load_newest(refused, at_most)


@pytest.mark.full
def test_a_skipped_document_stays_skipped_when_a_later_rollback_goes_further(poisoned: Any, tmp_path: Path) -> None:
    """The second rollback leads to before the first one."""
    flags = ["--checkpoint-interval", 10, "--keep-checkpoints", 9]
    assert poisoned(*flags, "--steps", 50, rows=[25, 35], checkpoints=Damaging) == 0
    state = read_state(tmp_path / "checkpoints" / "checkpoint_step_50.bin")
    assert state["health"]["roll_backs"] == 2 and len(state["samples"]["passed_by"]) == 2
    events = kinds(tmp_path / "training_viz")
    assert any(kind == "checkpoint refused" and "checkpoint_step_30.bin" in detail for kind, detail in events)
    assert ["checkpoint_step_10.bin" in detail for kind, detail in events if kind == "roll-back"] == [False, True]


@pytest.mark.full
def test_a_rollback_accepts_a_checkpoint_without_its_digest(poisoned: Any, tmp_path: Path) -> None:
    assert poisoned("--steps", 22, "--checkpoint-interval", 20) == 0
    for path in (tmp_path / "checkpoints").glob("*.sha256"):
        path.unlink()
    assert poisoned("--resume", "--steps", 50, rows=[24, 25]) == 0
    assert read_state(tmp_path / "checkpoints" / "checkpoint_step_50.bin")["health"]["roll_backs"] == 2


@pytest.mark.full
def test_a_rollback_across_the_end_of_an_epoch(poisoned: Any, tmp_path: Path) -> None:
    """The third of 20 documents breaks the weights in the second epoch; the rollback leads into the first."""
    write_jsonl(tmp_path / "texts.jsonl", TEXTS[:20])
    assert poisoned("--steps", 36, "--repeat", "--checkpoint-interval", 15, rows=[3], spared=1) == 0
    told = [detail for kind, detail in kinds(tmp_path / "training_viz") if kind in ("epoch", "roll-back")]
    assert [line.split()[0] for line in told] == ["All", "Rolled", "All"]
    assert ["epoch 2 starts" in line for line in told] == [True, False, True]


KILLED = """
import functools, os, signal, sys
from pathlib import Path
from tests.runs.test_divergence import TEXTS, Poison, Poisoned
from trainer.assemble import Builders
from trainer.cli import main
from trainer.data.tokenizer import Tokenizer
from trainer.run.checkpoints import CheckpointManager
from viz.visualizer import TrainingVisualizer

tokenizer, where, row, *words = sys.argv[1:]

def die(at):
    if at == where:
        os.kill(os.getpid(), signal.SIGKILL)

class Checkpoints(CheckpointManager):
    def set_aside_newer(self, *arguments):
        super().set_aside_newer(*arguments)
        die("set aside")

    def save(self, step, *arguments, **options):
        super().save(step, *arguments, **options)
        if (self.folder / f"checkpoint_step_{step}.bin").exists():  # saved again: after a rollback
            die("save")

class Visualizer(TrainingVisualizer):
    def rewind(self, step):
        super().rewind(step)
        if step:  # not the rewind at the start
            die("rewind")

document = tuple(Tokenizer.load(Path(tokenizer)).encode_prefix(TEXTS[int(row)], 48))
step = functools.partial(Poisoned, poison=Poison("parameters", {document}))
sys.exit(main(words, Builders(training_step=step, checkpoints=Checkpoints, visualizer=Visualizer)))
"""


@pytest.mark.parametrize(
    "where", ["set aside", pytest.param("rewind", marks=pytest.mark.full), pytest.param("save", marks=pytest.mark.full)]
)
def test_a_kill_in_the_middle_of_a_rollback(poisoned: Any, tokenizer: Path, tmp_path: Path, where: str) -> None:
    flags = ["--steps", 30, "--checkpoint-interval", 10]
    assert poisoned(*flags, "--out", "whole", rows=[15]) == 0
    words = [*SMALL, "--dataset", tmp_path / "texts.jsonl", "--tokenizer", tokenizer, *flags, "--out", "cut"]
    code, _, error = run_code(KILLED, [tokenizer, where, 15, *words], tmp_path)
    assert code == -9, error
    assert poisoned("--resume", "--out", "cut", rows=[15]) == 0
    equal_runs(tmp_path / "whole", tmp_path / "cut", 30)


def test_a_spike_is_an_event_and_a_flag_decides_about_its_update(poisoned: Any, tmp_path: Path) -> None:
    after = {}
    for spike in ("clip", "skip", "keep"):
        flags = ["--spike", spike, "--steps", 27, "--checkpoint-interval", 1, "--out", spike]
        assert poisoned(*flags, rows=[25], place="spike", value=1000.0) == 0
        ((kind, detail),) = kinds(tmp_path / spike / "training_viz")
        assert kind == "spike" and "gradient norm" in detail and "row 25" in detail
        assert ("update skipped" in detail) == (spike == "skip")
        folder = tmp_path / spike / "checkpoints"
        before, after[spike] = (read_state(folder / f"checkpoint_step_{step}.bin")["model"] for step in (25, 26))
        moved = not all(torch.equal(weight, before[name]) for name, weight in after[spike].items())
        assert moved == (spike != "skip")
    name = "model.embed_tokens.weight"
    assert torch.equal(after["clip"][name], after["keep"][name])  # both clipped to a norm of 1: the median is above 1/3


def test_a_resume_with_another_rate_may_roll_back_again(poisoned: Any, train: Train, tmp_path: Path) -> None:
    assert poisoned("--steps", 30, "--checkpoint-interval", 10, rows=range(12, 25)) == 4
    assert train("--resume", "--learning-rate", 1e-4) == 0
    assert read_state(tmp_path / "checkpoints" / "checkpoint_step_30.bin")["health"]["roll_backs"] == 0


def test_weights_that_are_not_finite_are_refused_at_the_start(train: Train, tmp_path: Path, capsys: Capture) -> None:
    assert train("--steps", 3) == 0
    path = tmp_path / "checkpoints" / "checkpoint_step_3.bin"
    state = read_state(path)
    state["model"]["model.norm.weight"][3] = NAN
    write_state(path, state)
    for flags in (["--resume", "--steps", 9], ["--steps", 9, "--pretrained-checkpoint", path]):
        capsys.readouterr()
        assert train(*flags) == 4
        assert "not finite" in error_line(capsys)


def test_a_run_that_ends_worse_than_guessing_reports_it(train: Train, capsys: Capture) -> None:
    assert train("--steps", 30, "--learning-rate", 10, "--warmup-steps", 0) == 0
    assert "above that of a uniform guess (5.99)" in capsys.readouterr().out
    assert train("--steps", 30) == 0
    assert "uniform guess" not in capsys.readouterr().out
