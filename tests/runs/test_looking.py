"""Observation never changes learning, and every flag does what it says."""

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runs.conftest import DOCUMENTS, QUICK, STEPS, Capture, Train, table
from tests.runs.test_resume import equal_runs
from trainer.observe.forgetting import Probes
from trainer.records import Sample
from viz.stats.retention import Retention

EVERY_PROBE = replace(QUICK, probes=functools.partial(Probes, share_of_time=100.0))
"""Which documents are re-measured does not depend on the clock."""


def test_charts_samples_evaluation_and_checkpoints_change_no_bit(train: Train, tmp_path: Path) -> None:
    assert train("--steps", 12, "--out", "blind", "--no-checkpoint") == 0
    looking = (
        "--viz-interval 3 --display-samples 2 --checkpoint-interval 4 --prompt Document "
        "--prompt other --evaluation-interval 3"
    ).split()
    assert train("--steps", 12, "--out", "looking", *looking) == 0
    blind, looked = tmp_path / "blind" / "training_viz", tmp_path / "looking" / "training_viz"
    assert len(table(blind, STEPS)) == 12
    assert table(blind, STEPS) == table(looked, STEPS)
    assert table(blind, DOCUMENTS) == table(looked, DOCUMENTS)
    assert table(looked, "SELECT step, split, tokens > 0 FROM evaluations WHERE source = ''") == [
        (step, "validation", 1) for step in (2, 5, 8, 11)
    ]


PROBES = "SELECT document, step - document FROM probes ORDER BY document, step"


def test_remeasured_documents_change_no_bit(train: Train, tmp_path: Path) -> None:
    assert train("--steps", 54, "--out", "blind", "--no-probes") == 0
    assert train("--steps", 54, "--out", "looked") == 0
    assert table(tmp_path / "blind" / "training_viz", PROBES) == []
    found = table(tmp_path / "looked" / "training_viz", PROBES)
    assert found[0] in [(49, 0), (50, 0)]  # the first for which there is time, on any machine
    equal_runs(tmp_path / "blind", tmp_path / "looked", 54)


class Touching(Probes):
    """Changes a weight a little before it measures."""

    def __init__(self, model: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(model, *arguments, **options)
        self._touched = model.model.norm.weight

    def follow(self, sample: Sample, done: int) -> None:
        with torch.no_grad():
            self._touched[0] += 1e-4
        super().follow(sample, done)


def test_the_comparison_can_fail(train: Train, tmp_path: Path) -> None:
    """Control: an observer that changes a weight is detected."""
    assert train("--steps", 20, "--out", "blind", "--no-probes") == 0
    assert train("--steps", 20, "--out", "touched", builders=replace(QUICK, probes=Touching)) == 0
    with pytest.raises(AssertionError):
        equal_runs(tmp_path / "blind", tmp_path / "touched", 20)


def test_a_resumed_run_remeasures_the_same_documents(train: Train, tmp_path: Path) -> None:
    """After a return to an older checkpoint, the rows are those of a run that never went back, to the last bit."""
    train = functools.partial(train, builders=EVERY_PROBE)
    assert train("--steps", 50, "--out", "whole") == 0
    assert train("--steps", 50, "--out", "back", "--checkpoint-interval", 24) == 0
    assert train("--resume", "back/checkpoints/checkpoint_step_24.bin", "--out", "back") == 0
    found = table(tmp_path / "whole" / "training_viz", PROBES)
    begun = [document for document, distance in found if distance == 0]
    assert begun == [1, 5, 15, 30]
    assert found == [(first, k) for first in begun for k in (0, 1, 2, 4, 8, 16, 32) if first + k < 50]
    rows = "SELECT * FROM probes ORDER BY document, step"
    assert table(tmp_path / "whole" / "training_viz", rows) == table(tmp_path / "back" / "training_viz", rows)


def test_the_tokens_of_as_many_documents_are_kept_as_requested(train: Train, tmp_path: Path) -> None:
    assert QUICK.visualizer is not None
    small = functools.partial(Retention, block=10, extremes=1, first=5)
    train = functools.partial(
        train, builders=replace(EVERY_PROBE, visualizer=functools.partial(QUICK.visualizer, retention=small))
    )
    emptied = "SELECT step FROM documents WHERE token_ids IS NULL ORDER BY step"
    assert train("--steps", 60, "--keep-documents", 25, "--out", "whole") == 0
    found = [step for (step,) in table(tmp_path / "whole" / "training_viz", emptied)]
    assert 15 <= len(found) <= 24 and max(found) < 30 and not {*range(5), 6, 18} & set(found)  # 6 and 18: probes
    assert train("--steps", 60, "--keep-documents", "all", "--out", "parts", "--checkpoint-interval", 40) == 0
    assert table(tmp_path / "parts" / "training_viz", emptied) == []
    assert train("--resume", "parts/checkpoints/checkpoint_step_40.bin", "--keep-documents", 25, "--out", "parts") == 0
    equal_runs(tmp_path / "whole", tmp_path / "parts", 60)
    (detail,) = table(tmp_path / "parts" / "training_viz", "SELECT detail FROM events WHERE kind = 'resume'")
    assert "keep_documents None → 25" in detail[0] and "not bit-identical" not in detail[0]


def test_flags_have_an_effect(train: Train, tmp_path: Path, corpus: Path) -> None:
    renamed = tmp_path / "renamed.jsonl"
    renamed.write_text(corpus.read_text().replace('"text"', '"content"'))
    flags = "--text-column content --viz-interval 4 --display-samples 3 --checkpoint-interval 4 --seed 5".split()
    assert train("--dataset", renamed, "--steps", 10, *flags, "--prompt", "Document 7", "--viz-dir", "v") == 0
    viz = tmp_path / "v"
    names = {"latest", "step_000004", "step_000008", "step_000010"}
    assert {path.name for path in viz.glob("training_*.png")} == {f"training_{name}.png" for name in names}
    assert (viz / "training_latest.png").read_bytes() == (viz / "training_step_000010.png").read_bytes()
    saved = {path.name for path in (tmp_path / "checkpoints").glob("*.bin")}
    assert saved == {f"checkpoint_step_{step}.bin" for step in (4, 8, 10)}
    samples = json.loads((viz / "text_samples.json").read_text())
    assert [sample["step"] for sample in samples] == [0, 0, 3, 3, 6, 6, 9, 9]
    assert [sample["input"] for sample in samples[1::2]] == ["Document 7"] * 4
    assert all(sample["output"] for sample in samples)
    assert {tokens for (tokens,) in table(viz, "SELECT max(tokens) FROM steps")} == {47}
    assert table(viz, "SELECT vocab_size FROM run")[0][0] <= 400
    assert {shard for (shard,) in table(viz, "SELECT DISTINCT shard FROM documents")} == {str(renamed)}
    assert train("--dataset", renamed, "--steps", 1, "--text-column", "content", "--viz-dir", "w") == 0
    seeds = [table(folder, STEPS)[0][1] for folder in (viz, tmp_path / "w")]
    assert seeds[0] != seeds[1]


def test_no_checkpoint_is_written_if_disabled(train: Train, tmp_path: Path) -> None:
    assert train("--steps", 3, "--no-checkpoint") == 0
    assert not list((tmp_path / "checkpoints").glob("*.bin"))


def test_repeat_starts_another_epoch(train: Train, tmp_path: Path, capsys: Capture) -> None:
    few = tmp_path / "few.txt"
    few.write_text("\n\n".join(f"Paragraph {number} is a document of its own here." for number in range(5)))
    assert train("--dataset", few, "--steps", 12) == 0
    assert "Out of documents before step 12" in capsys.readouterr().out
    assert len(table(tmp_path / "training_viz", STEPS)) == 5
    assert train("--dataset", few, "--steps", 12, "--repeat") == 0
    rows = [row for (row,) in table(tmp_path / "training_viz", "SELECT row FROM documents ORDER BY step")]
    assert rows == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert "epoch 2" in capsys.readouterr().out
    assert len(table(tmp_path / "training_viz", "SELECT * FROM events WHERE kind = 'epoch'")) == 2
