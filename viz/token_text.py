"""Token ids as text again, by the tokenizer that the store carries."""

from collections.abc import Callable, Sequence


def decoder(tokenizer: bytes | None) -> Callable[[Sequence[int]], str] | None:
    """What turns ids into text: of a SentencePiece model, or of the JSON of `tokenizers`, which begins with `{`.

    None where the store holds no tokenizer, or one that can't be read.
    """
    if not tokenizer:
        return None
    try:
        if tokenizer.startswith(b"{"):
            import tokenizers

            known = tokenizers.Tokenizer.from_str(tokenizer.decode())
            return lambda ids: str(known.decode(list(ids), skip_special_tokens=False))
        import sentencepiece

        model = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
        size = model.GetPieceSize()
        return lambda ids: str(model.DecodeIds([number for number in ids if number < size]))
    except Exception:  # noqa: BLE001  # tokenizers raises nothing narrower; a picture without words is still a picture
        return None
