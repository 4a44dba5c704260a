"""Looking never changes learning, and what is asked for is what is there."""

import json
from pathlib import Path

import pytest

from tests.runs.conftest import DOCUMENTS, STEPS, Train, table


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


def test_flags_reach_what_they_name(train: Train, tmp_path: Path, corpus: Path) -> None:
    renamed = tmp_path / "renamed.jsonl"
    renamed.write_text(corpus.read_text().replace('"text"', '"content"'))
    flags = "--text-column content --viz-interval 4 --display-samples 3 --checkpoint-interval 4 --seed 5".split()
    assert train("--dataset", renamed, "--steps", 10, *flags, "--prompt", "Document 7", "--viz-dir", "v") == 0
    viz = tmp_path / "v"
    assert {path.name for path in viz.glob("training_*.png")} == {
        "training_latest.png",
        "training_step_000004.png",
        "training_step_000008.png",
        "training_step_000010.png",
    }
    assert (viz / "training_latest.png").read_bytes() == (viz / "training_step_000010.png").read_bytes()
    assert {path.name for path in (tmp_path / "checkpoints").glob("*.bin")} == {
        "checkpoint_step_4.bin",
        "checkpoint_step_8.bin",
        "checkpoint_step_10.bin",
    }
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


def test_no_checkpoint_means_none(train: Train, tmp_path: Path) -> None:
    assert train("--steps", 3, "--no-checkpoint") == 0
    assert not list((tmp_path / "checkpoints").glob("*.bin"))


def test_repeat_goes_round_and_says_so(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = tmp_path / "few.txt"
    few.write_text("\n\n".join(f"Paragraph {number} is a document of its own here." for number in range(5)))
    assert train("--dataset", few, "--steps", 12) == 0
    assert "documents ended before step 12" in capsys.readouterr().out
    assert len(table(tmp_path / "training_viz", STEPS)) == 5
    assert train("--dataset", few, "--steps", 12, "--repeat") == 0
    rows = [row for (row,) in table(tmp_path / "training_viz", "SELECT row FROM documents ORDER BY step")]
    assert rows == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert "epoch 2" in capsys.readouterr().out
    assert len(table(tmp_path / "training_viz", "SELECT * FROM events WHERE kind = 'epoch'")) == 2


def test_a_pretrained_checkpoint_brings_its_weights_and_tokenizer(train: Train, tmp_path: Path) -> None:
    assert train("--steps", 30, "--out", "a", "--learning-rate", 0.003) == 0
    assert train("--steps", 2, "--out", "b", "--pretrained-checkpoint", "a/checkpoints") == 0
    first, second = (table(tmp_path / name / "training_viz", STEPS) for name in "ab")
    assert second[0][1] < first[0][1] - 0.5
    tokenizers = [table(tmp_path / name / "training_viz", "SELECT tokenizer FROM run") for name in "ab"]
    assert tokenizers[0] == tokenizers[1]
