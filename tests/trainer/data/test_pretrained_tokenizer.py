"""A pretrained byte-level tokenizer gives the same tokens as `AutoTokenizer` on the same file."""

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.conftest import make_texts
from tests.qwen3 import ENDS, VOCAB, make_tokenizer, write_folder
from tests.trainer.test_export import HOSTILE
from trainer.data.pretrained_tokenizer import PretrainedTokenizer, is_byte_level, tokenizer_of
from trainer.data.tokenizer import Tokenizer
from trainer.errors import UserError

CONTENT = make_tokenizer().to_str().encode()
TOKENS = make_tokenizer().get_vocab_size()
TEXT = st.one_of(
    st.text(max_size=40),
    st.text(st.sampled_from([*"ab  \n\t\r.,'s019é東\u0301\U0001f600\0", "\u212b"]), max_size=60),
    st.lists(st.sampled_from([*ENDS, " ", "x", "\n", "<|"]), max_size=8).map("".join),
)


@pytest.fixture(scope="module")
def tokenizer() -> PretrainedTokenizer:
    return PretrainedTokenizer(CONTENT, VOCAB)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(write_folder(tmp_path_factory.mktemp("qwen3")))


@pytest.mark.parametrize("text", [*HOSTILE, *ENDS], ids=range(len(HOSTILE) + len(ENDS)))
def test_hostile_texts(tokenizer: PretrainedTokenizer, theirs: PreTrainedTokenizerBase, text: str) -> None:
    assert_equal_tokens(tokenizer, theirs, text)


@given(text=TEXT)
@example(text="\u212b e\u0301")
def test_any_text(tokenizer: PretrainedTokenizer, theirs: PreTrainedTokenizerBase, text: str) -> None:
    assert_equal_tokens(tokenizer, theirs, text)


def assert_equal_tokens(tokenizer: PretrainedTokenizer, theirs: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer.EncodeAsIds(text)
    assert ids == theirs(text)["input_ids"]
    assert tokenizer.DecodeIds(ids) == theirs.decode(ids)
    assert tokenizer.piece_bytes[ids].sum() == len(tokenizer.DecodeIds(ids).encode())


@given(ids=st.lists(st.one_of(st.integers(0, 255), st.integers(0, VOCAB - 1)), max_size=12))
def test_any_ids(tokenizer: PretrainedTokenizer, theirs: PreTrainedTokenizerBase, ids: list[int]) -> None:
    """Including invalid UTF-8, and rows of the embedding without a token."""
    text = tokenizer.DecodeIds(ids)
    assert text == theirs.decode(ids)
    assert text == "".join(tokenizer.decode_stream(ids))


@given(
    parts=st.lists(st.one_of(TEXT, st.sampled_from(make_texts(5)), st.just("z" * 300)), min_size=1, max_size=8),
    max_tokens=st.integers(2, 40),
)
def test_a_prefix_is_the_start_of_all_tokens(tokenizer: PretrainedTokenizer, parts: list[str], max_tokens: int) -> None:
    text = " ".join(parts) * 3
    assert tokenizer.encode_prefix(text, max_tokens) == tokenizer.EncodeAsIds(text)[:max_tokens]


def test_a_prefix_of_a_long_text_does_not_read_all_of_it(tokenizer: PretrainedTokenizer) -> None:
    """Ten million spaces can't all be encoded; of a document, only the beginning is."""
    assert tokenizer.encode_prefix("word " * 10_000 + "\ud800", 50) == tokenizer.EncodeAsIds("word " * 50)[:50]
    spaces = " " * 11_000_000
    with pytest.raises(UserError, match="failed on a text of 11,000,000 characters"):
        tokenizer.EncodeAsIds(spaces)
    assert tokenizer.encode_prefix(spaces, 40) == tokenizer.EncodeAsIds(" " * 1000)[:40]


def test_invalid_texts_and_ids_raise(tokenizer: PretrainedTokenizer) -> None:
    assert tokenizer.GetPieceSize() == tokenizer.vocab_size == VOCAB > TOKENS
    assert tokenizer.piece_bytes[TOKENS:].sum() == 0
    with pytest.raises(UnicodeEncodeError):
        tokenizer.EncodeAsIds("a\ud800")
    for token in (-1, VOCAB):
        with pytest.raises(IndexError):
            tokenizer.DecodeIds([1, token])


def test_truncation_and_padding_are_turned_off(tokenizer: PretrainedTokenizer) -> None:
    made = make_tokenizer()
    made.enable_truncation(3)
    made.enable_padding(length=8)
    found, text = PretrainedTokenizer(made.to_str().encode(), VOCAB), "Document 1. Document 2."
    assert found.EncodeAsIds(text) == tokenizer.EncodeAsIds(text)


def test_the_kind_of_tokenizer_follows_from_its_bytes(tokenizer: PretrainedTokenizer) -> None:
    again = tokenizer_of(tokenizer.model_bytes, VOCAB, "c.bin")
    assert isinstance(again, PretrainedTokenizer) and again.sha256 == tokenizer.sha256
    ours = Tokenizer.train(make_texts(20), vocab_size=400)
    assert tokenizer_of(ours.model_bytes, ours.vocab_size, "c.bin").sha256 == ours.sha256
    for content, rows, says in [
        (CONTENT, TOKENS - 1, f"token {TOKENS - 1} .* is outside a vocabulary of {TOKENS - 1}"),
        (ours.model_bytes, 401, "its tokenizer has 400 pieces, but its model 401"),
        (b"{}", VOCAB, "c.bin: .* not the tokenizer.json of a byte-level BPE"),
        (b"[]", VOCAB, "stored tokenizer"),
        (CONTENT.replace(b'"ByteLevel"', b'"Fuse"'), VOCAB, "byte-level"),
        (CONTENT.replace(b'"dropout":null', b'"dropout":0.1'), VOCAB, "byte-level"),
        (CONTENT.replace(b'"isolated"', b'"none"').replace(b'"Isolated"', b'"none"'), VOCAB, "not a tokenizer.json"),
    ]:
        with pytest.raises(UserError, match=says) as refusal:
            tokenizer_of(content, rows, "c.bin")
        assert "\n" not in str(refusal.value)


def test_damaged_bytes_are_refused_or_still_a_tokenizer() -> None:
    generator, refused = random.Random(0), 0
    start = CONTENT.index(b'"merges"')
    for number in range(60):
        content = bytearray(CONTENT)
        if number % 3 == 0:
            del content[generator.randrange(len(content)) :]
        else:
            place = generator.randrange(start) if number % 3 == 1 else generator.randrange(start, len(content))
            content[place] = generator.choice(b'0123456789-"{}[],:xaN')
        try:
            tokenizer_of(bytes(content), VOCAB, "c.bin").EncodeAsIds("hello <|endoftext|>")
        except UserError:
            refused += 1
    assert refused > 40
    assert not is_byte_level(b"[" * 100_000)
