"""Which documents are usable, which are held out, and when too many unusable ones end the run."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator

from trainer.errors import UserError
from trainer.records import Document

MIN_CHARACTERS = 10
MAX_SKIPS_IN_A_ROW = 1000
HOLD_OUT_ONE_IN = 100


def why_unusable(document: Document) -> str:
    """Return why a document must be skipped with any tokenizer, or an empty string."""
    if document.fault is not None:
        return document.fault
    if not isinstance(document.text, str):
        return "text is not a string"
    if len(document.text) < MIN_CHARACTERS:
        return f"shorter than {MIN_CHARACTERS} characters"
    try:
        document.text.encode()
    except UnicodeEncodeError:
        return "lone surrogate"
    return ""


def usable_texts(documents: Iterable[Document]) -> Iterator[str]:
    """Yield the texts of the usable documents, for training the tokenizer.

    Raises:
        UserError: no document is usable, or more than 1,000 in a row are not.
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
        raise UserError(f"no document can be trained on ({skips.describe() or 'the data are empty'})")


def hash_text(text: str) -> bytes:
    """Return the SHA-256 of the text in UTF-8."""
    return hashlib.sha256(text.encode()).digest()


def is_held_out(text_hash: bytes) -> bool:
    """Return true for one document in 100, chosen by the hash of its text: the same ones in every run and epoch."""
    return int.from_bytes(text_hash[:8], "big") % HOLD_OUT_ONE_IN == 0


class SkipsInARow:
    """Ends a run whose data turn out to be unusable, instead of reading on forever."""

    def __init__(self) -> None:
        self._reasons: Counter[str] = Counter()

    def describe(self) -> str:
        """Return the reasons with their counts, most common first."""
        return ", ".join(f"{count:,} {reason}" for reason, count in self._reasons.most_common())

    def count(self, reason: str, document: Document) -> None:
        """Count a skipped document; an empty reason (a usable one) starts over. Raises UserError above the limit."""
        if not reason:
            self._reasons.clear()
            return
        self._reasons[reason] += 1
        if self._reasons.total() > MAX_SKIPS_IN_A_ROW:
            raise UserError(
                f"{self._reasons.total():,} documents in a row can't be used ({self.describe()}), the last at "
                f"{document.origin.shard} row {document.origin.row}: check --text-column"
            )
