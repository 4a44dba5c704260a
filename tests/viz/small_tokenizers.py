"""Small tokenizers of both kinds that a store may contain."""

import io

import sentencepiece
import tokenizers

from tests.conftest import make_texts

END_TOKENS = ["<|endoftext|>", "<|im_start|>"]


def train(**settings: object) -> bytes:
    """A SentencePiece model of English words; everything else is spelled in bytes."""
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


def encode(text: str) -> list[int]:
    """Encode a text with our tokenizer; a lone surrogate becomes `?`."""
    model = sentencepiece.SentencePieceProcessor(model_proto=MODELS["ours"])
    found: list[int] = model.EncodeAsIds(text.encode("utf-8", "replace").decode("utf-8"))
    return found


def train_json() -> bytes:
    """A byte-level BPE with special tokens, like Qwen3's `tokenizer.json`."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.normalizer = tokenizers.normalizers.NFC()
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator([*make_texts(60), "\n\n  it's  \t été 東京 123 "] * 2, trainer)
    made.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in END_TOKENS])
    return made.to_str().encode()


JSON = train_json()
