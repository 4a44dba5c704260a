"""Which documents can be used, which of them are held out from training, and when there are too many that can't."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator

from trainer.errors import UserError
from trainer.records import Document

MIN_CHARACTERS = 10
MAX_SKIPS_IN_A_ROW = 1000
HOLD_OUT_ONE_IN = 100


def why_unusable(document: Document) -> str:
    """The reason to skip a document whatever the tokenizer, or nothing."""
    if document.fault is not None:
        return document.fault
    if not isinstance(document.text, str):
        return "text is no string"
    if len(document.text) < MIN_CHARACTERS:
        return f"shorter than {MIN_CHARACTERS} characters"
    try:
        document.text.encode()
    except UnicodeEncodeError:
        return "half a surrogate pair"
    return ""


def usable_texts(documents: Iterable[Document]) -> Iterator[str]:
    """The texts of the documents that can be used, for the tokenizer to learn from.

    Raises:
        UserError: none of the documents can be used, or more than 1,000 in a row can't.
    """
    skips = SkipsInARow()
    found = False
    for document in documents:
        reason = why_unusable(document)
        skips.count(reason, document)
        if not reason:
            found = True
            yield str(document.text)
    if not found:
        raise UserError(f"there is no document to train on ({skips.words() or 'the data are empty'})")


def hash_text(text: str) -> bytes:
    """SHA-256 of the text in UTF-8."""
    return hashlib.sha256(text.encode()).digest()


def is_held_out(text_hash: bytes) -> bool:
    """One document in 100, chosen by the hash of its text, so that it is the same one in every run and every epoch."""
    return int.from_bytes(text_hash[:8], "big") % HOLD_OUT_ONE_IN == 0


class SkipsInARow:
    """Ends a run whose data is not what it was thought to be, instead of reading on for ever."""

    def __init__(self) -> None:
        self._reasons: Counter[str] = Counter()

    def words(self) -> str:
        return ", ".join(f"{count:,} {reason}" for reason, count in self._reasons.most_common())

    def count(self, reason: str, document: Document) -> None:
        if not reason:
            self._reasons.clear()
            return
        self._reasons[reason] += 1
        if self._reasons.total() > MAX_SKIPS_IN_A_ROW:
            raise UserError(
                f"{self._reasons.total():,} documents in a row can't be used ({self.words()}), the last at "
                f"{document.origin.shard} row {document.origin.row}: is --text-column right?"
            )
