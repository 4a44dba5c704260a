"""`python -m trainer.export`: `transformers` opens the folder and gives the same logits and tokens."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from tests.conftest import PROJECT
from tests.runs.conftest import Capture
from tests.trainer.data.test_tokenizer import CORPUS, LOSSLESS, trained_otherwise
from tests.trainer.interop.test_tokenizer_json import HOSTILE
from tests.trainer.model.test_language_model import TINY, random_ids, rough_model
from trainer.base.checkpoint_file import write_state
from trainer.data.tokenizer import Tokenizer
from trainer.export import main
from trainer.model.language_model import LanguageModel


def save(path: Path, tokenizer: Tokenizer) -> None:
    """Save a checkpoint of a random model with this tokenizer."""
    state = rough_model(vocab_size=tokenizer.vocab_size).checkpoint_state()
    write_state(path, {**state, "tokenizer": tokenizer.model_bytes})


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CORPUS, vocab_size=600)


@pytest.fixture(scope="module")
def checkpoint(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "checkpoint_step_7.bin"
    save(path, tokenizer)
    return path


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "model"
    assert main([str(checkpoint), str(out)]) == 0
    return out


def test_the_model_gives_equal_logits_and_generates_with_our_defaults(folder: Path, checkpoint: Path) -> None:
    model, ours = AutoModelForCausalLM.from_pretrained(folder), LanguageModel.from_checkpoint(checkpoint)
    assert isinstance(model, Qwen3ForCausalLM)
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = random_ids(2, 70)
    with torch.no_grad():
        assert (model(ids).logits - ours(ids)).abs().max() < 1e-5
        ours.model.layers[1].mlp.up_proj.weight[0, 0] += 1
        assert (model(ids).logits - ours(ids)).abs().max() > 1e-4, "the control: a change to one weight is detected"
    assert (model.generation_config.do_sample, model.generation_config.eos_token_id) == (True, None)
    assert (model.generation_config.temperature, model.generation_config.top_k) == (0.8, 50)
    assert model.generate(random_ids(1, 5), max_new_tokens=30).shape == (1, 35)


def test_the_exported_tokenizer_gives_equal_tokens(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Our own, and a lossless BPE model from elsewhere."""
    other = trained_otherwise(**LOSSLESS, model_type="bpe", allow_whitespace_only_pieces=True, pad_id=3)
    save(tmp_path / "c.bin", other)
    assert main([str(tmp_path / "c.bin"), str(tmp_path / "out")]) == 0
    for ours, path in ((tokenizer, folder), (other, tmp_path / "out")):
        theirs = AutoTokenizer.from_pretrained(path)
        for text in (*HOSTILE, *CORPUS):
            ids = ours.EncodeAsIds(text)
            assert theirs(text)["input_ids"] == ids and theirs.decode(ids) == ours.DecodeIds(ids)


def test_the_printed_code_works(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-m", "trainer.export", checkpoint, "it's a model"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    first, *snippet = done.stdout.splitlines()
    assert len(snippet) == 2
    assert all(path.name in first for path in (tmp_path / "it's a model").iterdir())
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec("\n".join(snippet), names)  # noqa: S102  # our own
    vocab_size = LanguageModel.from_checkpoint(checkpoint).vocab_size
    assert names["model"].num_parameters() == TINY.parameters(vocab_size) and len(names["tokenizer"]) == vocab_size


def test_only_an_earlier_export_is_replaced(checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert main([str(checkpoint), str(out)]) == 0  # an empty folder
    (out / "README.md").write_text("old")
    assert main([str(checkpoint), str(out)]) == 0
    assert (out / "README.md").read_text().startswith("---")
    assert list(tmp_path.iterdir()) == [out]
    (out / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    AutoModelForCausalLM.from_pretrained(out).save_pretrained(tmp_path / "model")  # saved by transformers
    for other, named in [(out, "notes.txt"), (tmp_path / "file", "not a folder"), (tmp_path / "model", "config.json")]:
        capsys.readouterr()
        assert main([str(checkpoint), str(other)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and named in error and str(other) in error
    assert (out / "notes.txt").read_text() == (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["missing.bin", "out"], "missing.bin can't be read"),
        (["out"], "no checkpoint in checkpoints"),
        ([], "OUT"),
        (["weights.bin", "out"], "no tokenizer"),
        (["--quick", "c.bin", "out"], "--quick"),
        (["unigram.bin", "out"], "can't be exported"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    rough_model().save_checkpoint("weights.bin")
    save(Path("unigram.bin"), trained_otherwise(**LOSSLESS))
    assert main(arguments) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1) and says in error
    assert not Path("out").exists()


@pytest.mark.full
def test_a_full_disk_leaves_the_earlier_export(checkpoint: Path, tmp_path: Path) -> None:
    assert main([str(checkpoint), str(tmp_path / "out")]) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "from trainer.export import main; sys.exit(main(sys.argv[1:]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    for name in ("out", "new"):
        command = [sys.executable, "-c", limited, checkpoint, tmp_path / name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout) == (5, ""), done.stderr
        assert done.stderr.count("\n") == 1 and "can't be written" in done.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_model_card_of_a_checkpoint_without_a_run(folder: Path) -> None:
    card = ModelCard.load(folder / "README.md")
    assert card.data.to_dict() == {"library_name": "transformers", "pipeline_tag": "text-generation"}
    assert "are not recorded" in card.text and "0.1 M parameters" in card.text
    assert "max_position_embeddings" not in json.loads((folder / "config.json").read_text())
