"""Ids as text: each one's share, and all of them together, are the same text."""

import io
from collections.abc import Sequence

import pytest
import sentencepiece
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st

from tests.conftest import make_texts
from viz.views.token_text import Speller, speller

VOCAB = 640
"""Rows of the embedding: more than the byte-level tokenizer has tokens, as in every Qwen3."""
ENDS = ["<|endoftext|>", "<|im_start|>"]
ODD = [
    "", " ", "  two  spaces ", "\n\n", "a\0b\0", "😀", "x😀😀y", "👩‍👩‍👧", "日本語", "e\u0301", "\u2581",
    "a\u2581b \u2581 ", "\ufffd", "\u202eabc",
    "<s>", "</s>", "<0x41>", "<unk>", *ENDS, "\ud7ff\ue000\U0010ffff", "\r\n\t\v\f\u2028",
]  # fmt: skip
TEXT = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(ODD), max_size=6).map("".join))


def train(**settings: object) -> bytes:
    """A SentencePiece model of English words; everything else it knows by its bytes alone."""
    made = io.BytesIO()
    lines = [f"one two three four {'five six ' * (number % 3)}seven, eight: nine-ten" for number in range(40)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=made, vocab_size=340, model_type="bpe", hard_vocab_limit=False,
        minloglevel=2, **settings,
    )  # fmt: skip
    return made.getvalue()


OURS = {
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "byte_fallback": True,
    "remove_extra_whitespaces": False,
}
MODELS = {
    "ours": train(**OURS),
    "with a dummy prefix": train(byte_fallback=True),
    "without bytes": train(normalization_rule_name="identity"),
}


def train_json() -> bytes:
    """A byte-level BPE with special tokens, as Qwen3's `tokenizer.json` is one."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.normalizer = tokenizers.normalizers.NFC()
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator([*make_texts(60), "\n\n  it's  \t été 東京 123 "] * 2, trainer)
    made.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in ENDS])
    return made.to_str().encode()


JSON = train_json()


def known(content: bytes) -> Speller:
    found = speller(content)
    assert found is not None
    return found


def check(one: Speller, ids: Sequence[int]) -> list[str]:
    pieces = one.pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == one.text(ids)
    return pieces


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("text", ODD)
def test_pieces_of_an_odd_text_are_the_text(name: str, text: str) -> None:
    model = sentencepiece.SentencePieceProcessor(model_proto=MODELS[name])
    check(known(MODELS[name]), model.EncodeAsIds(text))


@given(text=TEXT)
@example(text="a\u2581b")
def test_a_text_through_our_kind_of_model_is_itself(text: str) -> None:
    ids = sentencepiece.SentencePieceProcessor(model_proto=MODELS["ours"]).EncodeAsIds(text)
    said = "".join(check(known(MODELS["ours"]), ids))
    assert said == text.replace("\u2581", " ")  # SentencePiece's own sign for a space is one


@given(ids=st.lists(st.one_of(st.integers(0, 400), st.integers(3, 258)), max_size=20), name=st.sampled_from([*MODELS]))
def test_any_ids_of_a_sentencepiece_model_are_their_text(ids: list[int], name: str) -> None:
    """Bytes that are no UTF-8, control pieces, and ids that the model does not have."""
    check(known(MODELS[name]), ids)


@given(text=TEXT)
def test_a_text_through_a_byte_level_json_is_itself(text: str) -> None:
    tokenizer = tokenizers.Tokenizer.from_str(JSON.decode())
    said = "".join(check(known(JSON), tokenizer.encode(text).ids))
    assert said == tokenizer.normalizer.normalize_str(text)


@given(ids=st.lists(st.one_of(st.integers(0, VOCAB + 5), st.integers(94, 255)), max_size=20))
@example(ids=[162])
@example(ids=[VOCAB - 1, 162, VOCAB - 1, 245])
def test_any_ids_of_a_byte_level_json_are_their_text(ids: list[int]) -> None:
    check(known(JSON), ids)


def test_a_character_of_several_ids_stands_at_the_last_of_them() -> None:
    model = sentencepiece.SentencePieceProcessor(model_proto=MODELS["ours"])
    for one, ids in (
        (known(MODELS["ours"]), model.EncodeAsIds("x😀y")),
        (known(JSON), tokenizers.Tokenizer.from_str(JSON.decode()).encode("x😀y").ids),
    ):
        assert len(ids) == 6
        assert one.pieces(ids) == ["x", "", "", "", "😀", "y"]
        broken = one.pieces(ids[:3])  # cut in the middle of the character, as a document that is too long is
        assert broken[0] == "x" and set("".join(broken[1:])) == {"\ufffd"}


def test_ids_beyond_the_vocabulary_add_nothing() -> None:
    """A model may have more rows than its tokenizer has tokens, and a tampered record may say anything."""
    for content, ids in ((MODELS["ours"], [300, 301]), (JSON, [300, 301])):
        one = known(content)
        mixed = [2**31 - 1, ids[0], 100_000, ids[1], 2**31 - 1]
        first, second = one.pieces(ids)
        assert first and second
        assert one.pieces(mixed) == ["", first, "", second, ""]
        assert one.text(mixed) == one.text(ids)
        assert one.pieces([]) == [] and one.text([]) == ""


@pytest.mark.parametrize("content", [None, b"", b"none", b"{", b"{}", JSON[:-50], MODELS["ours"][:50], b"\0" * 64])
def test_what_is_no_tokenizer_spells_nothing(content: bytes | None) -> None:
    assert speller(content) is None


def test_control_an_id_by_itself_does_not_say_its_share() -> None:
    """Why pieces are not ids decoded one by one: an emoji of four would be four boxes."""
    model = sentencepiece.SentencePieceProcessor(model_proto=MODELS["ours"])
    ids = model.EncodeAsIds("x😀y")
    one = known(MODELS["ours"])
    assert "".join(one.text([number]) for number in ids) != one.text(ids) == "x😀y"
