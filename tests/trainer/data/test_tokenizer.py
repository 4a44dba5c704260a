"""Real SentencePiece models, each trained in a fraction of a second."""

import hashlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

from tests.conftest import PROJECT
from trainer.data.tokenizer import Tokenizer, collect_training_texts
from trainer.errors import UserError

SPACE = "\u2581"
CORPUS = [
    "def encode(self, text):\n    return [self.ids[piece] for piece in text.split()]\n\n",
    "\tif x is None:\n\t\traise ValueError('no  double  spaces?')\n",
    "It was the best of times, it was the worst of times, it was the age of wisdom.\n",
    "Grüße aus Köln, 東京から, и из Москвы. \U0001f600\n",
    "<s> begins and </s> ends, <unk> is neither, <0x41> is not A.\n",
] * 30


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CORPUS, vocab_size=600)


def trained_otherwise(**options: object) -> Tokenizer:
    """A model made with SentencePiece's own defaults, except for `options`."""
    model = io.BytesIO()
    settings = {"model_type": "unigram", "vocab_size": 400, "hard_vocab_limit": False, "minloglevel": 2, **options}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=model, **settings)
    return Tokenizer(model.getvalue())


LOSSLESS = {
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "byte_fallback": True,
}
FOREIGN = {
    "the defaults": {},
    "bytes but rewriting": {"byte_fallback": True},
    "unigram, lossless": LOSSLESS,
    "bpe, dummy prefix": {**LOSSLESS, "model_type": "bpe", "add_dummy_prefix": True},
    "bpe, pieces across words": {**LOSSLESS, "model_type": "bpe", "split_by_whitespace": False},
    "bpe, space as suffix": {**LOSSLESS, "model_type": "bpe", "treat_whitespace_as_suffix": True},
    "bpe, no bytes": {**LOSSLESS, "model_type": "bpe", "byte_fallback": False},
    "a symbol across words": {**LOSSLESS, "model_type": "bpe", "user_defined_symbols": ["of times", "ge "]},
}

# Words, runs of spaces, the space's double, control pieces, bytes beyond ASCII, NUL: everything but lone surrogates.
WORDS = ["of times", " ", "  ", SPACE, "\n", "\t", "\0", "<s>", "</s>", "<unk>", "<0x41>", "é", "東京"]
WORDS += ["it was the age ", "self, text", "\U0001f600", "\r\n", "e\u0301", "\u2585", "\u2047", "\ufeff"]
PIECES = st.one_of(st.sampled_from(WORDS), st.text(st.characters(exclude_categories=["Cs"]), max_size=8))
TEXTS = st.lists(PIECES, max_size=40).map("".join)


@pytest.fixture(scope="module", params=["ours", *FOREIGN])
def any_tokenizer(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Tokenizer:
    return tokenizer if request.param == "ours" else trained_otherwise(**FOREIGN[request.param])


@given(TEXTS, st.integers(0, 30))
@example("a" * 50 + " b", 3)
@example(("x" + SPACE + " ") * 60, 7)
def test_a_prefix_equals_the_start_of_all_tokens(any_tokenizer: Tokenizer, text: str, max_tokens: int) -> None:
    assert any_tokenizer.encode_prefix(text, max_tokens) == any_tokenizer.EncodeAsIds(text)[:max_tokens]


def test_prefix_reads_only_the_beginning(tokenizer: Tokenizer) -> None:
    # A lone surrogate can't be encoded, so it shows whether the text was read that far.
    text = "it was the age of wisdom " * 100 + "\ud800"
    assert len(tokenizer.encode_prefix(text, 50)) == 50
    with pytest.raises(UnicodeEncodeError):
        tokenizer.EncodeAsIds(text)
    with pytest.raises(UnicodeEncodeError):  # nowhere to cut
        tokenizer.encode_prefix("x" * 1000 + "\ud800", 50)
    with pytest.raises(UnicodeEncodeError):  # the control: a model whose pieces span words must read everything
        trained_otherwise(**FOREIGN["bpe, pieces across words"]).encode_prefix(text, 50)


@given(TEXTS)
@example("  leading and trailing  ")
@example("\n\n\t x \r\n")
@example("\0")
def test_encoding_loses_nothing(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.EncodeAsIds(text)
    survives = text.replace(SPACE, " ")  # the one exception
    assert tokenizer.DecodeIds(ids) == survives
    assert "".join(tokenizer.decode_stream(ids)) == survives
    assert tokenizer.piece_bytes[ids].sum() == len(survives.encode())
    assert not {0, 1, 2} & set(ids), "text never becomes a control piece"


def test_piece_bytes_by_kind(tokenizer: Tokenizer) -> None:
    assert tokenizer.piece_bytes.dtype == np.int32
    assert len(tokenizer.piece_bytes) == tokenizer.GetPieceSize() == tokenizer.vocab_size
    assert tokenizer.piece_bytes[:3].tolist() == [0, 0, 0]
    assert set(tokenizer.piece_bytes[3:259].tolist()) == {1}
    (was,) = tokenizer.EncodeAsIds(" was")
    assert tokenizer.piece_bytes[was] == 4
    assert len(tokenizer.EncodeAsIds("):\n    return")) <= 5, "pieces contain newlines and indents"


def test_a_character_is_streamed_once_all_its_bytes_are_there(tokenizer: Tokenizer) -> None:
    ids = tokenizer.EncodeAsIds("a\N{SNOWMAN}b")
    assert list(tokenizer.decode_stream(ids)) == ["a", "", "", "\N{SNOWMAN}", "b", ""]
    assert list(tokenizer.decode_stream(ids[:2])) == ["a", "", "\N{REPLACEMENT CHARACTER}"]
    assert next(tokenizer.decode_stream(iter(ids))) == "a", "immediately, not at the end"


def test_training_gives_the_same_bytes_in_every_process(tokenizer: Tokenizer, tmp_path: Path) -> None:
    script = """
from tests.trainer.data.test_tokenizer import CORPUS, Tokenizer
print(Tokenizer.train(iter(CORPUS), vocab_size=600).sha256)
"""
    for hash_seed in ("1", "2"):
        command, environment = [sys.executable, "-c", script], {"PYTHONPATH": str(PROJECT), "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert (done.stdout.strip(), done.stderr) == (tokenizer.sha256, "")
    assert not list(tmp_path.iterdir()), "nothing is written"
    assert tokenizer.sha256 == hashlib.sha256(tokenizer.model_bytes).hexdigest()
    assert Tokenizer.train(CORPUS[:-1], vocab_size=600).sha256 != tokenizer.sha256


@pytest.mark.parametrize("text", ["x", "hello world", " ", "a\0b", SPACE, "\U0001f600", "\t"])
def test_small_data_give_a_small_vocabulary(text: str) -> None:
    small = Tokenizer.train([text], vocab_size=8192)
    assert 259 < small.vocab_size < 300
    assert small.DecodeIds(small.EncodeAsIds("any \U0001f600 text\n")) == "any \U0001f600 text\n"


def test_the_vocabulary_has_the_requested_size_if_the_data_allow_it() -> None:
    assert Tokenizer.train(CORPUS, vocab_size=500).vocab_size == 500


def test_rare_characters_are_spelled_in_bytes() -> None:
    text = "the cat sat on the mat " * 400 + "".join(map(chr, range(0x4E00, 0x4E64)))
    small = Tokenizer.train([text], vocab_size=300)
    assert small.DecodeIds(small.EncodeAsIds(text)) == text
    with pytest.raises(UserError, match=r"vocabulary of 300 pieces is too small .* need 1264$"):
        Tokenizer.train(["".join(map(chr, range(0x4E00, 0x5200)))], vocab_size=300)


@pytest.mark.parametrize("texts", [[], [""], ["\n"], ["\ud800"]])
def test_nothing_to_learn_from_is_one_line(texts: list[str]) -> None:
    with pytest.raises(UserError, match=r"^the documents contain no text to train a tokenizer on$"):
        Tokenizer.train(texts)


@pytest.mark.parametrize(
    "long",
    [
        "wisdom " * 20_000,
        "wisdom\n" * 20_000,
        "\U0001f600" * 5_000 + "wisdom" * 20_000,  # 120,000 characters without a break
        "wisdom" + " " * 70_000 + "wisdom",
    ],
    ids=["one line", "many lines", "no break", "spaces"],
)
def test_long_texts_are_learned_from_and_not_dropped(long: str) -> None:
    learned = Tokenizer.train([long], vocab_size=350)
    assert len(learned.EncodeAsIds(long)) < len(long) / 3, "more than single characters was learned"
    assert learned.DecodeIds(learned.EncodeAsIds(long)) == long


def test_a_bad_text_costs_only_itself_and_an_error_ends_the_training() -> None:
    assert Tokenizer.train(["\ud800 bad", *CORPUS], 600).sha256 == Tokenizer.train(CORPUS, 600).sha256

    def failing():
        yield from CORPUS
        raise OSError("the network")

    with pytest.raises(OSError, match="the network"):  # and no model of what came before
        Tokenizer.train(failing(), vocab_size=600)


def test_models_are_loaded_from_bytes_and_files(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "t.model"
    path.write_bytes(tokenizer.model_bytes)
    for loaded in (Tokenizer.load(path), Tokenizer.from_bytes(tokenizer.model_bytes)):
        assert loaded.sha256 == tokenizer.sha256
        assert loaded.EncodeAsIds("it was") == tokenizer.EncodeAsIds("it was")


@pytest.mark.parametrize("content", [b"", b"hello", b"\0" * 100, None])
def test_other_files_are_refused_in_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "t.model"
    if content is not None:
        path.write_bytes(content)
        with pytest.raises(UserError, match="stored tokenizer"):
            Tokenizer.from_bytes(content)
    with pytest.raises(UserError) as refusal:
        Tokenizer.load(path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_texts_are_collected_up_to_either_limit() -> None:
    def texts():
        yield from ["aaaa", None, 7, "\ud800", "éé", "bbbb"]
        raise AssertionError("read too far")

    assert collect_training_texts(texts(), max_bytes=100, max_documents=6) == ["aaaa", "éé", "bbbb"]
    assert collect_training_texts(texts(), max_bytes=100, max_documents=2) == ["aaaa"]
    assert collect_training_texts(texts(), max_bytes=10, max_documents=9) == ["aaaa", "éé", "bb"]
    assert collect_training_texts(texts(), max_bytes=7, max_documents=9) == ["aaaa", "é"]
    assert collect_training_texts([], max_bytes=7) == []
