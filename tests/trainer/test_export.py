"""`python -m trainer.export`: what it writes, opened by `transformers` itself, says and reads what we do."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, Qwen3ForCausalLM

from tests.trainer.data.test_tokenizer import CORPUS, FOREIGN, LOSSLESS, trained_otherwise
from tests.trainer.model.test_language_model import TINY, random_ids, rough_model
from trainer.base.checkpoint_file import write_state
from trainer.data.tokenizer import Tokenizer
from trainer.errors import UserError
from trainer.export import main
from trainer.interop.tokenizer_json import refuse_difference, to_tokenizer_json
from trainer.model.language_model import LanguageModel

ROOT = Path(__file__).parents[2]
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
HOSTILE = [
    "",
    " ",
    "   ",
    " leading and trailing  ",
    "  two  spaces   three    four",
    "\tdef f():\n\t\treturn\t1\n\n\n",
    "line\r\nline\rline\n",
    "\0\x01\x02\x7f\x80\x9f\xad",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f3f3\ufe0f\u200d\U0001f308 \U0001f1e9\U0001f1ea",
    "\u05e9\u05dc\u05d5\u05dd \u202eabc\u202c \u0645\u0631\u062d\u0628\u0627",
    "e\u0301\u0327\u0323 \u0301 Z\u0351\u036b\u0343\u036a",
    SPACE,
    f"a{SPACE}b {SPACE} {SPACE}{SPACE}",
    "<s>",
    "a<s>b</s> <unk> <pad> <0x41><0xE2> <|endoftext|> [CLS]",
    "\u1200\u1208 \u0f40\u0f0b \u4e1c\u4eac \u10a0 \U00010330 \ufeff\uffff\U0010ffff",
    "x" * 10_000,
    "the best of times" * 600,
    " " * 10_000,
    "\n".join(CORPUS) * 20,
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CORPUS, vocab_size=600)


@pytest.fixture(scope="module")
def checkpoint(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "checkpoint_step_7.bin"
    state = rough_model(vocab_size=tokenizer.vocab_size).checkpoint_state()
    write_state(path, {**state, "tokenizer": tokenizer.model_bytes})
    return path


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "model"
    assert main([str(checkpoint), str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def theirs(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


def test_the_model_gives_equal_logits(folder: Path, checkpoint: Path) -> None:
    model, ours = AutoModelForCausalLM.from_pretrained(folder), LanguageModel.from_checkpoint(checkpoint)
    assert isinstance(model, Qwen3ForCausalLM)
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = random_ids(2, 70)
    with torch.no_grad():
        assert (model(ids).logits - ours(ids)).abs().max() < 1e-5
        ours.model.layers[1].mlp.up_proj.weight[0, 0] += 1
        assert (model(ids).logits - ours(ids)).abs().max() > 1e-4, "the control: one weight of one matrix is seen"


def test_it_generates_with_our_defaults(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert (model.generation_config.do_sample, model.generation_config.eos_token_id) == (True, None)
    assert (model.generation_config.temperature, model.generation_config.top_k) == (0.8, 50)
    assert model.generate(random_ids(1, 5), max_new_tokens=30).shape == (1, 35)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_are_equal_tokens(theirs: PreTrainedTokenizerBase, tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.EncodeAsIds(text)
    assert theirs(text)["input_ids"] == ids
    assert theirs.decode(ids) == tokenizer.DecodeIds(ids) == text.replace(SPACE, " ")


PIECES = st.text(st.sampled_from([*"ab cdefiotuwhms.\n\t_()<>/0x41é東\u0301\U0001f600\0\r", SPACE]), max_size=60)


@given(text=st.one_of(st.text(max_size=40), PIECES, st.lists(st.sampled_from(CORPUS), max_size=3).map("".join)))
@example(text=" \n" * 40)
def test_any_text_is_equal_tokens(theirs: PreTrainedTokenizerBase, tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.EncodeAsIds(text)
    assert theirs(text)["input_ids"] == ids
    assert theirs.decode(ids) == tokenizer.DecodeIds(ids)


def test_control_and_unknown_pieces_decode_as_ours_do(theirs: PreTrainedTokenizerBase, tokenizer: Tokenizer) -> None:
    for ids in ([0], [1], [2], [1, *tokenizer.EncodeAsIds("times <s>"), 2, 0, 0]):
        assert theirs.decode(ids) == tokenizer.DecodeIds(ids)


@pytest.mark.parametrize("name", FOREIGN)
def test_other_sentencepiece_models_are_exact_or_refused(name: str) -> None:
    tokenizer = trained_otherwise(**FOREIGN[name])
    try:
        made = tokenizers.Tokenizer.from_str(to_tokenizer_json(tokenizer))
    except UserError as refusal:
        assert "can't be exported" in str(refusal) and "\n" not in str(refusal)
        assert name not in ("bpe, pieces across words", "bpe, space as suffix")
    else:
        for text in (*HOSTILE, *CORPUS):
            assert made.encode(text).ids == tokenizer.EncodeAsIds(text)


def test_pieces_of_one_score_are_refused(tokenizer: Tokenizer) -> None:
    """Among equals SentencePiece takes the leftmost in the text, a list of merges the first in the list."""
    from trainer.interop.tokenizer_json import _read_model

    pieces, _ = _read_model(tokenizer.model_bytes)
    one, other = [struct_of(piece, score) for piece, score, kind in pieces if kind == 1 and len(piece) > 1][3:5]
    assert tokenizer.model_bytes.count(other) == 1
    tied = Tokenizer(tokenizer.model_bytes.replace(other, other[:-4] + one[-4:]))
    with pytest.raises(UserError, match="same score"):
        to_tokenizer_json(tied)


def struct_of(piece: str, score: float) -> bytes:
    """A piece and its score as they stand in the model's bytes."""
    name = piece.encode()
    return b"\n" + bytes([len(name)]) + name + b"\x15" + struct.pack("<f", score)


def test_a_tokenizer_that_differs_is_found_out(tokenizer: Tokenizer) -> None:
    made = to_tokenizer_json(tokenizer)
    refuse_difference(made, tokenizer)
    with pytest.raises(UserError, match="transformers would read"):
        refuse_difference(made, Tokenizer.train(CORPUS, vocab_size=590))
    content = json.loads(made)
    content["model"]["merges"].pop()
    with pytest.raises(UserError, match="transformers would read"):
        refuse_difference(json.dumps(content), tokenizer)


def test_a_lossless_bpe_of_others_is_exported(tmp_path: Path) -> None:
    settings = {**LOSSLESS, "model_type": "bpe", "allow_whitespace_only_pieces": True, "pad_id": 3}
    tokenizer = trained_otherwise(**settings)
    state = rough_model(vocab_size=tokenizer.vocab_size).checkpoint_state()
    write_state(tmp_path / "c.bin", {**state, "tokenizer": tokenizer.model_bytes})
    assert main([str(tmp_path / "c.bin"), str(tmp_path / "out")]) == 0
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in HOSTILE:
        assert theirs(text)["input_ids"] == tokenizer.EncodeAsIds(text)


def test_what_is_said_works_as_it_stands(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-m", "trainer.export", checkpoint, "it's a model"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
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


def test_an_earlier_export_is_replaced_and_nothing_else(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert main([str(checkpoint), str(out)]) == 0  # an empty folder
    (out / "README.md").write_text("old")
    assert main([str(checkpoint), str(out)]) == 0
    assert (out / "README.md").read_text().startswith("---")
    assert list(tmp_path.iterdir()) == [out]
    (out / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    AutoModelForCausalLM.from_pretrained(out).save_pretrained(tmp_path / "model")  # trained on, and saved, by others
    for other, named in [(out, "notes.txt"), (tmp_path / "file", "no folder"), (tmp_path / "model", "config.json")]:
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
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    rough_model().save_checkpoint("weights.bin")
    unigram = trained_otherwise(**LOSSLESS)
    state = rough_model(vocab_size=unigram.vocab_size).checkpoint_state()
    write_state(Path("unigram.bin"), {**state, "tokenizer": unigram.model_bytes})
    assert main(arguments) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1) and says in error
    assert not Path("out").exists()


@pytest.mark.full
def test_a_full_disk_leaves_what_was_there(checkpoint: Path, tmp_path: Path) -> None:
    assert main([str(checkpoint), str(tmp_path / "out")]) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "from trainer.export import main; sys.exit(main(sys.argv[1:]))"
    )
    for name in ("out", "new"):
        done = subprocess.run(
            [sys.executable, "-c", limited, checkpoint, tmp_path / name],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (done.returncode, done.stdout) == (5, ""), done.stderr
        assert done.stderr.count("\n") == 1 and "can't be written" in done.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_card_of_a_checkpoint_that_tells_nothing(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert "is not recorded" in card and "0.1 M parameters" in card and "license" not in card.lower()
    assert "max_position_embeddings" not in json.loads((folder / "config.json").read_text())
