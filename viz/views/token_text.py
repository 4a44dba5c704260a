"""Decodes token ids with the tokenizer in the store."""

from collections.abc import Callable, Sequence


class Speller:
    """Decodes ids: all of them together, or each one's share of the text."""

    def __init__(self, text: Callable[[Sequence[int]], str], pieces: Callable[[Sequence[int]], list[str]]) -> None:
        self.text = text
        """(T,) ids -> their text."""
        self.pieces = pieces
        """(T,) ids -> (T,) what each adds to the text. The last id of a character adds it; its other ids add ''."""


def speller(tokenizer: bytes | None) -> Speller | None:
    """Return a `Speller` for a SentencePiece model, or for the JSON of `tokenizers`, which begins with `{`.

    None if the store has no tokenizer, or one that can't be read.
    """
    if not tokenizer:
        return None
    try:
        return _of_json(tokenizer) if tokenizer.startswith(b"{") else _of_sentencepiece(tokenizer)
    except Exception:  # noqa: BLE001  # tokenizers raises nothing narrower; a chart without words is still useful
        return None


def _of_json(tokenizer: bytes) -> Speller:
    import tokenizers
    from tokenizers.decoders import DecodeStream

    known = tokenizers.Tokenizer.from_str(tokenizer.decode())

    def text(ids: Sequence[int]) -> str:
        return str(known.decode(list(ids), skip_special_tokens=False))

    def pieces(ids: Sequence[int]) -> list[str]:
        stream = DecodeStream(skip_special_tokens=False)
        found = [stream.step(known, number) or "" for number in ids]
        if found:  # an incomplete character at the end
            found[-1] += text(ids)[len("".join(found)) :]
        return found

    return Speller(text, pieces)


def _of_sentencepiece(tokenizer: bytes) -> Speller:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    size = model.GetPieceSize()

    def pieces(ids: Sequence[int]) -> list[str]:
        known = [number for number in ids if number < size]
        found = model.decode(known, return_type="offset_mapping")
        spelled = iter(found["offsets"])
        return [found["text"][slice(*next(spelled))] if number < size else "" for number in ids]

    return Speller(lambda ids: str(model.DecodeIds([number for number in ids if number < size])), pieces)
