"""Convert a tokenizer to a `tokenizer.json` of Hugging Face's `tokenizers` that gives every text the same tokens."""

import itertools
import json
import re
import struct
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from trainer.data.pretrained_tokenizer import PretrainedTokenizer
from trainer.data.tokenizer import Tokenizer
from trainer.errors import UserError

# From SentencePiece's `sentencepiece_model.proto`: kinds of pieces, and a kind of model.
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
_BPE = 2

_HOSTILE = (
    "",
    " ",
    "  two  spaces and a tab\t, \r\n a line \n\n",
    "\0\x01\x7f\x85\u2028",
    "\N{LOWER ONE EIGHTH BLOCK} a \N{LOWER ONE EIGHTH BLOCK}b",
    "<s></s><unk><pad><0x41><|endoftext|>",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u05e9\u05dc\u05d5\u05dd e\u0301\u0327 \ufeff\uffff\U0010ffff",
    "a" * 1000,
)
_PROBE = 50
"""Number of consecutive pieces that are decoded to get a text for the comparison."""


def to_tokenizer_json(tokenizer: Tokenizer, texts: Iterable[str] = ()) -> str:
    """Return a `tokenizer.json` that encodes and decodes as `tokenizer` does.

    Both decode invalid UTF-8 to U+FFFD, though the number of these characters may differ.

    Args:
        texts: texts to compare the two on, besides built-in difficult texts and all pieces.

    Raises:
        UserError: the two libraries treat such a model differently.
    """
    if isinstance(tokenizer, PretrainedTokenizer):
        content = json.loads(tokenizer.model_bytes)
        # The model was trained on texts without added tokens, padding or truncation.
        made = json.dumps({**content, "truncation": None, "padding": None, "post_processor": None}, ensure_ascii=False)
    else:
        made = _from_sentencepiece(tokenizer)
    refuse_difference(made, tokenizer, texts)
    return made


def special_tokens(tokenizer: Tokenizer, ids: Collection[int]) -> list[str]:
    """Return the special tokens with these ids that the tokenizer recognizes in text."""
    if not isinstance(tokenizer, PretrainedTokenizer):
        return []
    added = json.loads(tokenizer.model_bytes).get("added_tokens") or []
    return [token["content"] for token in added if token["special"] and token["id"] in ids]


def refuse_difference(made: str, tokenizer: Tokenizer, texts: Iterable[str] = ()) -> None:
    """Raise UserError if a `tokenizer.json` and `tokenizer` treat any of many texts differently."""
    import tokenizers

    theirs = tokenizers.Tokenizer.from_str(made)
    for text in (*_HOSTILE, *texts, *_texts_of_pieces(tokenizer)):
        ids = tokenizer.EncodeAsIds(text)
        if theirs.encode(text).ids != ids or theirs.decode(ids, skip_special_tokens=False) != tokenizer.DecodeIds(ids):
            raise UserError(f"this tokenizer can't be exported: transformers would tokenize {text[:40]!r} differently")


def _texts_of_pieces(tokenizer: Tokenizer) -> Iterator[str]:
    for start in range(0, tokenizer.vocab_size, _PROBE):
        yield tokenizer.DecodeIds(list(range(start, min(start + _PROBE, tokenizer.vocab_size))))


def _from_sentencepiece(tokenizer: Tokenizer) -> str:
    from tokenizers import Regex, decoders, models, normalizers
    from tokenizers import Tokenizer as Theirs

    pieces, model_type = _read_model(tokenizer.model_bytes)
    scores = {piece: score for piece, score, kind in pieces if kind == _NORMAL}
    named = [(token, piece) for token, (piece, _, kind) in enumerate(pieces) if kind in (_UNKNOWN, _CONTROL)]
    merges = _merges(scores)
    reason = ""
    if model_type != _BPE:
        reason = "it is not a BPE model"
    elif not tokenizer.is_lossless:
        reason = "it changes text (train it without normalization and dummy prefix, and with byte fallback)"
    elif any(kind not in (_NORMAL, _UNKNOWN, _CONTROL, _BYTE) for _, _, kind in pieces):
        reason = "it has user-defined or unused pieces"
    elif any(len(piece) < 2 for _, piece in named) or any(part not in scores for pair in merges for part in pair):
        reason = "a control piece is a single character, or a piece contains characters that are not pieces"
    elif len({scores[one + other] for one, other in merges}) < len(merges):
        reason = "two of its pieces have the same score"
    if reason:
        raise UserError(f"this tokenizer can't be exported for transformers: {reason}")
    made = Theirs(
        models.BPE(vocab={piece: token for token, (piece, *_) in enumerate(pieces)}, merges=merges, byte_fallback=True)
    )
    made.normalizer = normalizers.Replace(" ", "\N{LOWER ONE EIGHTH BLOCK}")
    made.decoder = decoders.Sequence(
        [
            # Control pieces must not become added tokens, because those are recognized in text.
            *(
                decoders.Replace(Regex(rf"\A{re.escape(piece)}\z"), tokenizer.DecodeIds([token]))
                for token, piece in named
            ),
            decoders.Replace("\N{LOWER ONE EIGHTH BLOCK}", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
        ]
    )
    written: str = made.to_str()
    return written


def _merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """Return the pair that each piece is merged from, best score first.

    SentencePiece repeatedly merges the two neighbours that form the piece with the best score (the leftmost of equals).
    The parts of a piece are merged in the same order whatever surrounds it. So each piece has one last pair, and a list
    of these pairs, ranked by score, gives the same result.
    """
    ranked = sorted((piece for piece in scores if len(piece) > 1), key=lambda piece: -scores[piece])
    return [pair for piece in ranked if (pair := _last_pair(piece, scores))]


def _last_pair(piece: str, scores: dict[str, float]) -> tuple[str, str] | None:
    """Return the last merge that turns the characters of `piece` into it, or None if merging never gives it."""
    parts = list(piece)
    while len(parts) > 2:
        joined = [one + other for one, other in itertools.pairwise(parts)]
        known = [place for place, text in enumerate(joined) if text in scores]
        if not known:
            return None
        best = max(known, key=lambda place: scores[joined[place]])
        parts[best : best + 2] = [joined[best]]
    return (parts[0], parts[1])


def _read_model(model_bytes: bytes) -> tuple[list[tuple[str, float, int]], int]:
    """Return (piece, score, kind) of every piece, and the kind of model, from SentencePiece's protocol buffer."""
    pieces, model_type = [], 1
    for field, value in _fields(model_bytes):
        if field == 1:
            piece = dict(_fields(value))
            (score,) = struct.unpack("<f", piece.get(2, bytes(4)))
            pieces.append((piece[1].decode(), score, piece.get(3, _NORMAL)))
        elif field == 2:
            model_type = dict(_fields(value)).get(3, model_type)
    return pieces, model_type


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of each field of a message; a value is an int or bytes (protobuf.dev, "Encoding")."""
    place = 0

    def number() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while place < len(message):
        key = number()
        if key & 7 == 0:
            yield key >> 3, number()
        else:
            length = {1: 8, 5: 4}.get(key & 7) or number()
            yield key >> 3, message[place : place + length]
            place += length
