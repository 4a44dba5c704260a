"""`tokenizer.json` as `transformers` reads it: equal tokens for any text, or a refusal."""

import json
import struct

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.trainer.data.test_tokenizer import CORPUS, FOREIGN, trained_otherwise
from trainer.data.tokenizer import Tokenizer
from trainer.errors import UserError
from trainer.interop.tokenizer_json import _read_model, refuse_difference, to_tokenizer_json

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
def theirs(tokenizer: Tokenizer) -> PreTrainedTokenizerBase:
    made = tokenizers.Tokenizer.from_str(to_tokenizer_json(tokenizer))
    return PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_give_equal_tokens(theirs: PreTrainedTokenizerBase, tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.EncodeAsIds(text)
    assert theirs(text)["input_ids"] == ids
    assert theirs.decode(ids) == tokenizer.DecodeIds(ids) == text.replace(SPACE, " ")


PIECES = st.text(st.sampled_from([*"ab cdefiotuwhms.\n\t_()<>/0x41é東\u0301\U0001f600\0\r", SPACE]), max_size=60)


@given(text=st.one_of(st.text(max_size=40), PIECES, st.lists(st.sampled_from(CORPUS), max_size=3).map("".join)))
@example(text=" \n" * 40)
def test_any_text_gives_equal_tokens(theirs: PreTrainedTokenizerBase, tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.EncodeAsIds(text)
    assert theirs(text)["input_ids"] == ids
    assert theirs.decode(ids) == tokenizer.DecodeIds(ids)


def test_control_and_unknown_pieces_decode_as_ours_do(theirs: PreTrainedTokenizerBase, tokenizer: Tokenizer) -> None:
    for ids in ([0], [1], [2], [1, *tokenizer.EncodeAsIds("times <s>"), 2, 0, 0]):
        assert theirs.decode(ids) == tokenizer.DecodeIds(ids)


@pytest.mark.parametrize("name", FOREIGN)
def test_other_sentencepiece_models_are_exported_exactly_or_rejected(name: str) -> None:
    tokenizer = trained_otherwise(**FOREIGN[name])
    try:
        made = tokenizers.Tokenizer.from_str(to_tokenizer_json(tokenizer))
    except UserError as refusal:
        assert "can't be exported" in str(refusal) and "\n" not in str(refusal)
        assert name not in ("bpe, pieces across words", "bpe, space as suffix")
    else:
        for text in (*HOSTILE, *CORPUS):
            assert made.encode(text).ids == tokenizer.EncodeAsIds(text)


def test_pieces_with_equal_scores_are_rejected(tokenizer: Tokenizer) -> None:
    """At equal scores, SentencePiece prefers the leftmost in the text; `tokenizers` prefers the first in its list."""
    pieces, _ = _read_model(tokenizer.model_bytes)
    one, other = [encoded(piece, score) for piece, score, kind in pieces if kind == 1 and len(piece) > 1][3:5]
    assert tokenizer.model_bytes.count(other) == 1
    tied = Tokenizer(tokenizer.model_bytes.replace(other, other[:-4] + one[-4:]))
    with pytest.raises(UserError, match="same score"):
        to_tokenizer_json(tied)


def encoded(piece: str, score: float) -> bytes:
    """The bytes of a piece and its score in a SentencePiece model."""
    name = piece.encode()
    return b"\n" + bytes([len(name)]) + name + b"\x15" + struct.pack("<f", score)


def test_a_different_tokenizer_is_detected(tokenizer: Tokenizer) -> None:
    made = to_tokenizer_json(tokenizer)
    refuse_difference(made, tokenizer)
    with pytest.raises(UserError, match="transformers would read"):
        refuse_difference(made, Tokenizer.train(CORPUS, vocab_size=590))
    content = json.loads(made)
    content["model"]["merges"].pop()
    with pytest.raises(UserError, match="transformers would read"):
        refuse_difference(json.dumps(content), tokenizer)
