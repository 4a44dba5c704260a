"""Convert text to token ids and back without loss: a SentencePiece model, loaded or trained on the first documents."""

import codecs
import hashlib
import io
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sentencepiece

from trainer.errors import UserError

# SentencePiece writes a space as this character. It is the only character that does not survive encoding and decoding:
# it becomes a space.
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"

# Between a non-space and a space. If a model splits words there, none of its pieces spans this point.
_WORD_END = re.compile(f"(?<=[^ {_SPACE}])(?= )")

# Items for SentencePiece's trainer, cut at the end of a word where possible. It silently drops items above 4,192 bytes
# (1,000 characters are at most 4,000) and aborts at 65,535 characters without a break.
_CHUNK = re.compile(rf".{{1,1000}}(?:{_WORD_END.pattern}|\Z)|.{{1,1000}}", re.DOTALL)

# Share of the text whose characters get their own pieces (the others are spelled in bytes): SentencePiece's default,
# then the minimum it accepts, for a small vocabulary.
_CHARACTER_COVERAGES = (0.9995, 0.98)


class Tokenizer:
    """One SentencePiece model. Token ids are indices of its pieces, 0 <= id < `vocab_size`.

    Method names in capitals are those of SentencePiece's own processor.
    """

    _spare = 1  # a text that is cut must give at least this many times the tokens asked for

    def __init__(self, model_bytes: bytes) -> None:
        """Load a serialized SentencePiece model. Raises ValueError if `model_bytes` are something else."""
        if not model_bytes:  # SentencePiece takes empty bytes as "load later"
            raise ValueError("an empty file is not a SentencePiece model")
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model_bytes)
        except RuntimeError as error:
            raise ValueError("not a SentencePiece model") from error
        self.model_bytes = model_bytes
        self.sha256 = hashlib.sha256(model_bytes).hexdigest()
        self.vocab_size: int = self._processor.GetPieceSize()
        self._spelling = self._spell_pieces()
        self.piece_bytes: npt.NDArray[np.int32] = np.array(
            [len(spelling) for spelling in self._spelling], dtype=np.int32
        )
        """(V,) int32: number of UTF-8 bytes that each piece spells; 0 for control pieces and the unknown piece."""
        self.is_lossless = self._is_lossless()
        """Whether the model keeps every character (spaces as U+2581) and spells characters without a piece in bytes."""
        # If so, and if no piece spans the end of a word, a text may be cut there and its parts encoded separately.
        spans = any(re.search(rb"[^ ] ", spelling) for spelling in self._spelling)
        self._splits_at_words = self.is_lossless and not spans

    @classmethod
    def from_bytes(cls, model_bytes: bytes) -> "Tokenizer":
        """Load the `model_bytes` kept in a checkpoint or a store. Raises UserError if they are damaged."""
        try:
            return cls(model_bytes)
        except ValueError as error:
            raise UserError(f"the stored tokenizer can't be read: {error}") from None

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read a SentencePiece model file. Raises UserError if it is missing or something else."""
        try:
            return cls(Path(path).read_bytes())
        except OSError as error:
            raise UserError(f"tokenizer {path} can't be read: {error.strerror}") from None
        except ValueError as error:
            raise UserError(f"tokenizer {path}: {error} (expected a .model file written by SentencePiece)") from None

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 8192) -> "Tokenizer":
        """Train a lossless BPE model with up to `vocab_size` pieces, fewer if the texts do not yield more.

        Texts with a lone surrogate are skipped. The same texts give the same bytes in every process.

        Raises:
            UserError: there is no text, or the vocabulary is too small for the characters.
        """
        # A list, because SentencePiece takes an exception inside an iterator for the end of the data.
        chunks = [chunk for text in texts if _is_unicode(text) for chunk in _CHUNK.findall(text)]
        for coverage in _CHARACTER_COVERAGES:
            model = io.BytesIO()
            try:
                sentencepiece.SentencePieceTrainer.train(
                    sentence_iterator=iter(chunks),
                    model_writer=model,
                    model_type="bpe",
                    vocab_size=vocab_size,
                    hard_vocab_limit=False,
                    character_coverage=coverage,
                    required_chars=_SPACE,  # otherwise texts without spaces give a model that decodes a space as this
                    byte_fallback=True,
                    normalization_rule_name="identity",
                    add_dummy_prefix=False,
                    remove_extra_whitespaces=False,
                    allow_whitespace_only_pieces=True,
                    num_threads=1,  # part of the model file: another number gives other bytes
                    minloglevel=2,
                )
            except RuntimeError as error:
                if "sentences_.empty()" in str(error):
                    raise UserError("the documents contain no text to train a tokenizer on") from None
                too_small = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
                if too_small is None:
                    raise
                needed = too_small[1]
            else:
                return cls(model.getvalue())
        raise UserError(
            f"a vocabulary of {vocab_size} pieces is too small for these documents: their characters and the "
            f"bytes alone need {needed}"
        )

    def EncodeAsIds(self, text: str) -> list[int]:
        """Return the token ids of the whole text. Raises UnicodeEncodeError (a ValueError) at a lone surrogate."""
        ids: list[int] = self._processor.EncodeAsIds(text.encode())
        return ids

    def DecodeIds(self, ids: list[int]) -> str:
        """Return the text that `ids` spell; invalid UTF-8 becomes U+FFFD. Raises IndexError for an unknown id."""
        text: str = self._processor.DecodeIds(ids)
        return text

    def GetPieceSize(self) -> int:
        """Return the number of pieces, `vocab_size`."""
        return self.vocab_size

    def encode_prefix(self, text: str, max_tokens: int) -> list[int]:
        """Return `EncodeAsIds(text)[:max_tokens]`, reading only as much of a long text as necessary.

        A lone surrogate after that part is not noticed.
        """
        if self._splits_at_words:
            enough = self._spare * max_tokens
            reach = 5 * enough  # characters; a token spells about four
            while reach < len(text) and (word_end := _WORD_END.search(text, reach)):
                ids = self.EncodeAsIds(text[: word_end.start()])
                if len(ids) >= enough:
                    return ids[:max_tokens]
                reach = 2 * word_end.start()
        return self.EncodeAsIds(text)[:max_tokens]

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Yield a string for each id, possibly empty: a character follows once all its bytes have arrived."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token in ids:
            yield decoder.decode(self._spelling[token])
        yield decoder.decode(b"", final=True)

    def _spell_pieces(self) -> list[bytes]:
        """Return the bytes that each piece spells."""
        ids = list(range(self.vocab_size))
        return [
            bytes([int(piece[3:5], 16)])  # <0x41>
            if is_byte
            else b""
            if is_control or is_unknown
            else piece.replace(_SPACE, " ").encode()
            for piece, is_byte, is_control, is_unknown in zip(
                self._processor.IdToPiece(ids),
                self._processor.IsByte(ids),
                self._processor.IsControl(ids),
                self._processor.IsUnknown(ids),
                strict=True,
            )
        ]

    def _is_lossless(self) -> bool:
        # This text reveals every normalizer setting that affects spaces.
        spaces_are_kept = self._processor.Normalize(" a  b ") == f"{_SPACE}a{_SPACE}{_SPACE}b{_SPACE}"
        try:
            rewrites = sentencepiece.SentencePieceNormalizer(model_proto=self.model_bytes).Decompile()
        except RuntimeError as error:
            if "No precompiled charsmap" not in str(error):
                raise
            rewrites = []
        has_bytes = any(self._processor.IsByte(list(range(self.vocab_size))))
        return spaces_are_kept and not rewrites and has_bytes


def collect_training_texts(
    texts: Iterable[object], max_bytes: int = 8_000_000, max_documents: int = 2_000
) -> list[str]:
    """Return the texts that a tokenizer is trained on: the first `max_bytes` of UTF-8 or `max_documents`.

    Nothing is read from `texts` beyond that. The last text is cut to fit. An item that is not a string or contains a
    lone surrogate counts as a document but is omitted.
    """
    collected = []
    for text in islice(texts, max_documents):
        if isinstance(text, str) and _is_unicode(text):
            encoded = text.encode()[:max_bytes]
            collected.append(encoded.decode(errors="ignore"))
            max_bytes -= len(encoded)
            if max_bytes <= 0:
                break
    return collected


def _is_unicode(text: str) -> bool:
    """Return False for a text with a lone surrogate, which can't be encoded as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
