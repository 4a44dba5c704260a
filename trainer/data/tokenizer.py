"""Text to token ids and back, losing nothing: a SentencePiece model, loaded or trained on the first documents."""

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

# SentencePiece writes a space as this character. The two can't be told apart afterwards: it is the one character that
# does not survive encoding and decoding (it comes back as a space).
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"

# Between a non-space and a space, where no piece of a model that splits words there can reach across.
_WORD_END = re.compile(f"(?<=[^ {_SPACE}])(?= )")

# Items for the trainer, up to a word's end where there is one. It drops an item above 4,192 bytes without a word (1,000
# characters are at most 4,000 bytes) and aborts on 65,535 characters in a row without a break.
_CHUNK = re.compile(rf".{{1,1000}}(?:{_WORD_END.pattern}|\Z)|.{{1,1000}}", re.DOTALL)

# Share of the text whose characters get a piece of their own (the others are spelt in bytes): SentencePiece's default,
# then the least it accepts, for a small vocabulary.
_CHARACTER_COVERAGES = (0.9995, 0.98)


class Tokenizer:
    """One SentencePiece model. Token ids are indices of its pieces, 0 <= id < `vocab_size`.

    The method names with capitals are those of SentencePiece's own processor, which callers of this project know.
    """

    _spare = 1  # times as many tokens as are asked for are encoded of a text that is cut

    def __init__(self, model_bytes: bytes) -> None:
        """`model_bytes`: a serialized SentencePiece model. Raises ValueError when it is not one."""
        if not model_bytes:  # SentencePiece takes nothing for "load later"
            raise ValueError("an empty file is no SentencePiece model")
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
        """(V,) int32: UTF-8 bytes of the text that each piece spells; 0 for control pieces and the unknown piece."""
        self.is_lossless = self._is_lossless()
        """Whether every character reaches the pieces as it is, spaces as U+2581, and what has no piece is spelt in
        bytes."""
        # Then a text may be cut at a word's end, and its parts encoded one by one, if no piece spans such a point.
        spans = any(re.search(rb"[^ ] ", spelling) for spelling in self._spelling)
        self._splits_at_words = self.is_lossless and not spans

    @classmethod
    def from_bytes(cls, model_bytes: bytes) -> "Tokenizer":
        """The tokenizer whose `model_bytes` a checkpoint or a store kept. Raises UserError when they are damaged."""
        try:
            return cls(model_bytes)
        except ValueError as error:
            raise UserError(f"the stored tokenizer can't be read: {error}") from None

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read a SentencePiece model file. Raises UserError when it is missing or something else."""
        try:
            return cls(Path(path).read_bytes())
        except OSError as error:
            raise UserError(f"tokenizer {path} can't be read: {error.strerror}") from None
        except ValueError as error:
            raise UserError(f"tokenizer {path}: {error} (expected the .model file that SentencePiece writes)") from None

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 8192) -> "Tokenizer":
        """Learn a lossless BPE model: up to `vocab_size` pieces, fewer where the texts hold no more.

        Texts with a lone surrogate are passed by. The same texts give the same bytes, in every process.

        Raises:
            UserError: nothing to learn from, or more kinds of characters than the vocabulary has room for.
        """
        # A list, because SentencePiece takes an exception inside an iterator for its end.
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
                    required_chars=_SPACE,  # where the texts have no space it would be spelt, and decoded, as this
                    byte_fallback=True,
                    normalization_rule_name="identity",
                    add_dummy_prefix=False,
                    remove_extra_whitespaces=False,
                    allow_whitespace_only_pieces=True,
                    num_threads=1,  # is written into the model: another number, other bytes
                    minloglevel=2,
                )
            except RuntimeError as error:
                if "sentences_.empty()" in str(error):
                    raise UserError("the documents hold no text to train a tokenizer on") from None
                too_small = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
                if too_small is None:
                    raise
                needed = too_small[1]
            else:
                return cls(model.getvalue())
        raise UserError(
            f"a vocabulary of {vocab_size} pieces is too small for these documents: single characters and bytes alone "
            f"take {needed}"
        )

    def EncodeAsIds(self, text: str) -> list[int]:
        """Token ids of the whole text. Raises UnicodeEncodeError (a ValueError) when it holds a lone surrogate."""
        ids: list[int] = self._processor.EncodeAsIds(text.encode())
        return ids

    def DecodeIds(self, ids: list[int]) -> str:
        """The text that `ids` spell; bytes that are no UTF-8 become U+FFFD. Raises IndexError for an unknown id."""
        text: str = self._processor.DecodeIds(ids)
        return text

    def GetPieceSize(self) -> int:
        """Number of pieces, `vocab_size`."""
        return self.vocab_size

    def encode_prefix(self, text: str, max_tokens: int) -> list[int]:
        """`EncodeAsIds(text)[:max_tokens]`, having read only as much of a long text as that takes.

        A lone surrogate behind the part that is read goes unnoticed.
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
        """Decode ids as they come, one string each, maybe empty: a character is given once all its bytes are there."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token in ids:
            yield decoder.decode(self._spelling[token])
        yield decoder.decode(b"", final=True)

    def _spell_pieces(self) -> list[bytes]:
        """The bytes that each piece stands for."""
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
        # Every switch of the normalizer that touches spaces shows in this one text.
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
    """What a tokenizer is trained on: the first `max_bytes` of UTF-8 or `max_documents`, whichever comes first.

    No document is taken from `texts` beyond that. The last text is cut to fit. What is no text, or holds a lone
    surrogate, counts as a document and is left out.
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
    """False for a text with a lone surrogate, which has no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
