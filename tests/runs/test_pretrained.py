"""A run that starts from a Qwen3 of `transformers`, from its first step to its exported folder."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.qwen3 import ENDS, VOCAB, write_folder
from tests.runs.conftest import STEPS, Capture, Train, table
from tests.runs.test_resume import equal_runs
from trainer.base.checkpoint_file import read_state, write_state
from trainer.data.pretrained_tokenizer import tokenizer_of
from trainer.export import main as export
from trainer.generate import main as generate
from trainer.model.language_model import LanguageModel
from viz.record.reader import StoreReader


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("qwen3"))


FLAGS = "--max-seq-length 48 --dtype fp32 --device cpu --warmup-steps 10 --viz-interval 1000".split()


@pytest.fixture
def train_on(train: Train, qwen3: Path, corpus: Path) -> Train:
    def run(*arguments: object) -> int:
        words = () if "--resume" in arguments else (*FLAGS, "--dataset", corpus, "--pretrained-checkpoint", qwen3)
        return train(*words, *arguments, small=False)

    return run


def test_from_qwen3_to_qwen3(train_on: Train, qwen3: Path, tmp_path: Path, capsys: Capture) -> None:
    """Trained, resumed exactly, read back from its record alone, used to generate, exported, used as a new start."""
    assert train_on("--steps", 30, "--out", "whole") == 0
    assert "Model: 3 layers of width 48, 0.1 M parameters" in capsys.readouterr().out
    assert train_on("--steps", 12, "--out", "parts") == 0
    assert train_on("--resume", "--steps", 30, "--out", "parts") == 0
    equal_runs(tmp_path / "whole", tmp_path / "parts", 30)

    path = tmp_path / "whole" / "checkpoints" / "checkpoint_step_30.bin"
    state = read_state(path)
    assert (state["vocab_size"], state["shape"]["rope_theta"], state["config"]["model_size"]) == (VOCAB, 1e6, None)
    with StoreReader(tmp_path / "whole" / "training_viz" / "run.db") as store:
        run, document = store.run(), store.documents(7)[0]
    assert (run["vocab_size"], run["model"]) == (VOCAB, "3 layers of width 48 0.1 M")
    kept = tokenizer_of(run["tokenizer"], run["vocab_size"], "run.db")
    theirs = AutoTokenizer.from_pretrained(qwen3)
    text = kept.DecodeIds(document["token_ids"].tolist())
    assert text.startswith("Document ") and theirs(text)["input_ids"] == document["token_ids"].tolist()

    capsys.readouterr()
    assert generate([str(path), "--prompt", "Document 1.", "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out.startswith("Document 1.")

    assert export([str(path), "taken"]) == 0
    model, again = AutoModelForCausalLM.from_pretrained("taken"), AutoTokenizer.from_pretrained("taken")
    ids = torch.tensor([theirs("Document 1. and on it goes <|im_start|>")["input_ids"]])
    with torch.no_grad():
        assert (model(ids).logits - LanguageModel.from_checkpoint(state)(ids)).abs().max() < 1e-4
    for sentence in (text, " e\u0301 \u212b\n\n", "".join(ENDS)):
        assert again(sentence)["input_ids"] == theirs(sentence)["input_ids"]
    assert (again.eos_token, model.generation_config.eos_token_id) == ("<|endoftext|>", [600])
    assert model.config.max_position_embeddings == 4096
    card = Path("taken/README.md").read_text()
    assert "30 documents" in card and f"`{qwen3}`" in card and "at most 48 tokens" in card

    assert train_on("--steps", 2, "--out", "next", "--pretrained-checkpoint", "taken") == 0
    first = [table(tmp_path / name / "training_viz", STEPS)[0][1] for name in ("whole", "next")]
    assert first[1] < first[0] - 0.2


def test_from_our_own_run_by_way_of_transformers(train: Train, corpus: Path, tmp_path: Path) -> None:
    """A start from the export equals a start from the checkpoint."""
    assert train("--steps", 12, "--learning-rate", 0.01, "--out", "a") == 0
    assert export(["a/checkpoints", "taken"]) == 0
    for name, start in (("b", "taken"), ("c", "a/checkpoints")):
        words = (*FLAGS, "--dataset", corpus, "--steps", 5, "--out", name, "--pretrained-checkpoint", start)
        assert train(*words, small=False) == 0
    one, other = (read_state(tmp_path / name / "checkpoints" / "checkpoint_step_5.bin") for name in "bc")
    losses = {name: table(tmp_path / name / "training_viz", STEPS)[0][1] for name in "abc"}
    assert losses["c"] < losses["a"] - 0.2
    assert one["config"]["model_size"] == other["config"]["model_size"] == "tiny"
    assert all(torch.equal(one["model"][name], other["model"][name]) for name in one["model"])
    state, taken = read_state(tmp_path / "a/checkpoints/checkpoint_step_12.bin"), load_file("taken/model.safetensors")
    assert state["tokenizer"] == one["tokenizer"] == other["tokenizer"]
    assert all(torch.equal(taken[name], weight) for name, weight in state["average"].items())
    assert any(not torch.equal(taken[name], weight) for name, weight in state["model"].items())
    assert table(tmp_path / "b" / "training_viz", STEPS) == table(tmp_path / "c" / "training_viz", STEPS)


def test_another_size_is_refused_and_a_folder_with_both_reports_its_choice(
    train_on: Train, qwen3: Path, tmp_path: Path, capsys: Capture
) -> None:
    for flags in (["--model-size", "tiny"], ["--model-size", "small"], ["--vocab-size", 500]):
        assert train_on("--steps", 2, *flags) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and str(flags[1]) in error
        assert "3 layers of width 48" in error or "640" in error
    assert not (tmp_path / "training_viz" / "run.db").exists()
    both = tmp_path / "both"
    write_folder(both)
    state = LanguageModel.from_checkpoint(read_state(_checkpoint(train_on, tmp_path))).checkpoint_state()
    write_state(both / "checkpoint_step_9.bin", state)
    capsys.readouterr()
    assert train_on("--steps", 2, "--pretrained-checkpoint", both) == 0
    assert f"{both} contains a transformers model and checkpoints: using the model" in capsys.readouterr().out
    empty = tmp_path / "empty"
    empty.mkdir()
    assert train_on("--steps", 2, "--pretrained-checkpoint", empty) == 2
    assert "config.json" in capsys.readouterr().err


def _checkpoint(train_on: Train, folder: Path) -> Path:
    assert train_on("--steps", 1, "--out", "one") == 0
    return folder / "one" / "checkpoints" / "checkpoint_step_1.bin"


def test_a_checkpoint_with_their_tokenizer_that_was_tampered_with(
    train_on: Train, tmp_path: Path, capsys: Capture
) -> None:
    path = _checkpoint(train_on, tmp_path)
    state = read_state(path)
    for change in (
        {"tokenizer": b"{}"},
        {"tokenizer": state["tokenizer"][:-9]},
        {"vocab_size": VOCAB - 1},
        {"vocab_size": 10**12},
        {"shape": state["shape"] | {"layers": 4}},
        {"shape": state["shape"] | {"head_dim": 10**9}},
        {"config": state["config"] | {"model_size": "small"}},
    ):
        write_state(path, {**state, **change})
        capsys.readouterr()
        assert train_on("--resume", "--steps", 3, "--out", "one") == 2, change
        assert capsys.readouterr().err.count("\n") == 1
    for carried in (None, 5, {"eos_token_id": ["x"], "max_position_embeddings": -1}):
        write_state(path, {**state, "pretrained": carried})
        assert export([str(path), "taken"]) == 0
        assert "eos_token_id" not in json.loads(Path("taken/config.json").read_text())
