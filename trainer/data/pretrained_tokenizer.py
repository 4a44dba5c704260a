"""The tokenizer of a pretrained model: a byte-level `tokenizer.json` with the interface of our own tokenizer."""

import hashlib
import json
from typing import Any

import numpy as np

from trainer.data.tokenizer import Tokenizer
from trainer.errors import UserError


def _byte_of_character() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary represents.

    The format dates from GPT-2: characters printable in Latin-1 represent themselves; the characters from U+0100 on
    represent the remaining bytes in order.
    """
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(0x100)) - set(printing))
    return {chr(byte): byte for byte in printing} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_of_character()

_LONGEST_TEXT = 1_000_000
"""Characters. Qwen3's pattern fails on ten million consecutive spaces, and a megabyte takes a second."""


class PretrainedTokenizer(Tokenizer):
    """A byte-level BPE of Hugging Face's `tokenizers`. Encodes and decodes as `AutoTokenizer` does, adding no tokens.

    Special tokens spelled in a text (`<|endoftext|>`) become those tokens. Decoding gives the text after the
    tokenizer's normalization (Qwen3: NFC).
    """

    # The pattern that splits words is unknown, but words are short: a cut affects no tokens this far before it.
    _spare = 4

    def __init__(self, model_bytes: bytes, vocab_size: int) -> None:
        """
        Args:
            model_bytes: the content of a `tokenizer.json`.
            vocab_size: rows of the model's embedding; rows after the last token spell nothing.

        Raises:
            ValueError: it is another kind of file, or it has more tokens than that.
        """
        import tokenizers  # imported here because most runs do not need it

        if not is_byte_level(model_bytes):
            raise ValueError("not the tokenizer.json of a byte-level BPE")
        try:
            self._encoder = tokenizers.Tokenizer.from_str(model_bytes.decode())
        except BaseException as error:
            if not isinstance(error, Exception) and not _is_panic(error):
                raise
            raise ValueError(f"not a tokenizer.json ({str(error).partition(chr(10))[0][:200]})") from None
        self._encoder.no_truncation()
        self._encoder.no_padding()
        self.model_bytes = model_bytes
        self.sha256 = hashlib.sha256(model_bytes).hexdigest()
        self.vocab_size = vocab_size
        self._spelling = [b""] * vocab_size
        for token, number in self._encoder.get_vocab(with_added_tokens=True).items():
            if number >= vocab_size:
                raise ValueError(f"token {number} ({token[:40]!r}) is outside a vocabulary of {vocab_size}")
            self._spelling[number] = _spell(token)
        self.piece_bytes = np.array([len(spelling) for spelling in self._spelling], dtype=np.int32)
        self.is_lossless = self._encoder.normalizer is None
        self._splits_at_words = True

    def EncodeAsIds(self, text: str) -> list[int]:
        text.encode()  # a lone surrogate raises the same error as in the other tokenizer
        try:
            ids: list[int] = self._encoder.encode(text, add_special_tokens=False).ids
        except BaseException as error:
            if not _is_panic(error):
                raise
            raise UserError(f"the pretrained tokenizer failed on a text of {len(text):,} characters: {error}") from None
        return ids

    def encode_prefix(self, text: str, max_tokens: int) -> list[int]:
        """Like `Tokenizer.encode_prefix`, for the first `_LONGEST_TEXT` characters."""
        return super().encode_prefix(text[:_LONGEST_TEXT], max_tokens)

    def DecodeIds(self, ids: list[int]) -> str:
        if any(not 0 <= token < self.vocab_size for token in ids):
            raise IndexError(f"token ids must be from 0 to {self.vocab_size - 1}")
        return b"".join(self._spelling[token] for token in ids).decode(errors="replace")


def tokenizer_of(model_bytes: bytes, vocab_size: int, name: str) -> Tokenizer:
    """Load the tokenizer, of either kind, whose `model_bytes` a checkpoint or folder contains.

    Args:
        vocab_size: of the model in the same checkpoint or folder.
        name: of the checkpoint or folder, for messages.

    Raises:
        UserError: the bytes are damaged, or the tokenizer does not fit the model.
    """
    if model_bytes.startswith(b"{"):  # no SentencePiece model starts like this
        try:
            return PretrainedTokenizer(model_bytes, vocab_size)
        except ValueError as error:
            raise UserError(f"{name}: its tokenizer can't be used: {error}") from None
    found = Tokenizer.from_bytes(model_bytes)
    if found.vocab_size != vocab_size:
        raise UserError(
            f"{name} is inconsistent: its tokenizer has {found.vocab_size:,} pieces, its model {vocab_size:,}"
        )
    return found


def is_byte_level(model_bytes: bytes) -> bool:
    """Return whether this is the `tokenizer.json` of a deterministic byte-level BPE (without dropout)."""
    try:
        content: Any = json.loads(model_bytes)
        model = content["model"]
        return bool(content["decoder"]["type"] == "ByteLevel" and model["type"] == "BPE" and not model.get("dropout"))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def _is_panic(error: BaseException) -> bool:
    """Return whether this is a panic of the Rust library, which is not an `Exception`."""
    return type(error).__name__ == "PanicException"


def _spell(token: str) -> bytes:
    try:
        return bytes(_BYTES[character] for character in token)
    except KeyError:  # an added token, not a learned one
        return token.encode()
