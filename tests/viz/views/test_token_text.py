"""The shares of all ids, joined, are the text of the ids."""

from collections.abc import Sequence

import pytest
import sentencepiece
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st

from tests.viz.small_tokenizers import END_TOKENS, JSON, MODELS
from viz.views.token_text import Speller, speller

VOCAB = 640
"""Rows of the embedding: more than the byte-level tokenizer has tokens, as in every Qwen3."""
ODD = [
    "", " ", "  two  spaces ", "\n\n", "a\0b\0", "😀", "x😀😀y", "👩‍👩‍👧", "日本語", "e\u0301", "\u2581",
    "a\u2581b \u2581 ", "\ufffd", "\u202eabc",
    "<s>", "</s>", "<0x41>", "<unk>", *END_TOKENS, "\ud7ff\ue000\U0010ffff", "\r\n\t\v\f\u2028",
]  # fmt: skip
TEXT = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(ODD), max_size=6).map("".join))
OURS = sentencepiece.SentencePieceProcessor(model_proto=MODELS["ours"])
BYTE_LEVEL = tokenizers.Tokenizer.from_str(JSON.decode())


def known(content: bytes) -> Speller:
    found = speller(content)
    assert found is not None
    return found


def check(one: Speller, ids: Sequence[int]) -> str:
    """Return the text of the ids."""
    pieces = one.pieces(ids)
    assert len(pieces) == len(ids) and "".join(pieces) == one.text(ids)
    return one.text(ids)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("text", ODD)
def test_pieces_of_an_odd_text_are_the_text(name: str, text: str) -> None:
    check(known(MODELS[name]), sentencepiece.SentencePieceProcessor(model_proto=MODELS[name]).EncodeAsIds(text))


@given(text=TEXT)
@example(text="a\u2581b")
def test_encoding_and_spelling_a_text_returns_the_text(text: str) -> None:
    # SentencePiece uses U+2581 for a space; the byte-level tokenizer normalizes its input.
    assert check(known(MODELS["ours"]), OURS.EncodeAsIds(text)) == text.replace("\u2581", " ")
    assert check(known(JSON), BYTE_LEVEL.encode(text).ids) == BYTE_LEVEL.normalizer.normalize_str(text)


@given(
    ids=st.lists(st.one_of(st.integers(0, VOCAB + 5), st.integers(3, 258)), max_size=20),
    content=st.sampled_from([*MODELS.values(), JSON]),
)
@example(ids=[162], content=JSON)
@example(ids=[VOCAB - 1, 162, VOCAB - 1, 245], content=JSON)
def test_any_ids_can_be_spelled(ids: list[int], content: bytes) -> None:
    """Invalid UTF-8, control pieces, and ids beyond the vocabulary."""
    check(known(content), ids)


def test_a_character_of_several_ids_belongs_to_the_last_of_them() -> None:
    text = "x😀y"
    for content, ids in ((MODELS["ours"], OURS.EncodeAsIds(text)), (JSON, BYTE_LEVEL.encode(text).ids)):
        one = known(content)
        assert one.pieces(ids) == ["x", "", "", "", "😀", "y"]
        broken = one.pieces(ids[:3])  # cut within the character, as in a truncated document
        assert broken[0] == "x" and set("".join(broken[1:])) == {"\ufffd"}
        # Control: decoded one by one, the ids of the emoji would be four boxes.
        assert "".join(one.text([number]) for number in ids) != one.text(ids) == text


@pytest.mark.parametrize("content", [MODELS["ours"], JSON])
def test_ids_beyond_the_vocabulary_add_nothing(content: bytes) -> None:
    """A model may have more rows than its tokenizer has tokens, and a tampered record may contain anything."""
    one = known(content)
    first, second = one.pieces([300, 301])
    mixed = [2**31 - 1, 300, 100_000, 301, 2**31 - 1]
    assert first and second and one.pieces(mixed) == ["", first, "", second, ""]
    assert one.text(mixed) == one.text([300, 301])
    assert one.pieces([]) == [] and one.text([]) == ""


@pytest.mark.parametrize("content", [None, b"", b"none", b"{", b"{}", JSON[:-50], MODELS["ours"][:50], b"\0" * 64])
def test_invalid_tokenizers_are_ignored(content: bytes | None) -> None:
    assert speller(content) is None
