"""Documents → samples: reads ahead and tokenizes in a thread; skips, holds out, and carries the state behind each."""

import hashlib
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from trainer.errors import UserError
from trainer.records import Cursor, Document, Sample
from trainer.tokenizer import Tokenizer

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
    skips = _SkipsInARow()
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


def held_out_samples(
    documents: Iterable[Document], tokenizer: Tokenizer, max_seq_length: int, count: int, *, own_split: bool
) -> list[Sample]:
    """The first `count` samples that training never sees.

    Args:
        documents: the training documents from their first, of which one in 100 is held out.
        own_split: they are a split of their own instead, all of it held out.
    """
    held_out = (
        document
        for document in documents
        if not why_unusable(document) and (own_split or is_held_out(hash_text(str(document.text))))
    )
    stream = SampleStream(held_out, tokenizer, max_seq_length, hold_out=False, should_stop=lambda: False, ahead=count)
    samples = list(islice(stream, count))
    stream.close()
    return samples


class SampleStream:
    """An iterator of `Sample`s that a thread prepares ahead of the training step.

    What is fetched ahead is invisible to `state_dict()`: it is the state behind the sample last handed out.
    """

    def __init__(
        self,
        documents: Iterable[Document],
        tokenizer: Tokenizer,
        max_seq_length: int,
        *,
        hold_out: bool,
        should_stop: Callable[[], bool],
        state: Mapping[str, Any] | None = None,
        ahead: int = 64,
    ) -> None:
        """
        Args:
            documents: a stream that stands at the cursor of `state`.
            hold_out: leave one document in 100 out of training.
            should_stop: asked while waiting; once true the iteration ends.
            state: of an earlier `state_dict()`.
            ahead: samples prepared in advance.
        """
        self.waited_seconds = 0.0
        """Seconds that the last sample was waited for."""
        self._documents = documents
        self._tokenizer = tokenizer
        self._max_seq_length = max_seq_length
        self._hold_out = hold_out
        self._should_stop = should_stop
        self._state: dict[str, Any] = dict(state) if state else _Counts().state_dict(Cursor())
        self._queue: queue.Queue[Sample | _End] = queue.Queue(maxsize=ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._read_ahead, name="samples", daemon=True)

    def __iter__(self) -> Iterator[Sample]:
        self._thread.start()
        while True:
            since = time.monotonic()
            item = self._next()
            self.waited_seconds = time.monotonic() - since
            if item is None:
                return
            if isinstance(item, _End):
                self._state = item.state
                if item.error is not None:
                    raise item.error
                return
            self._state = item.stream_state
            yield item

    def state_dict(self) -> dict[str, Any]:
        """`cursor` (the next document to read), `trained`, `held_out` and `skipped` (reason → count) so far."""
        return dict(self._state)

    def close(self) -> None:
        """Let the thread end; it may be waiting for the network, so it is not waited for."""
        self._closed.set()

    def _next(self) -> "Sample | _End | None":
        while not self._should_stop():
            try:
                return self._queue.get(timeout=0.2)
            except queue.Empty:
                continue
        return None

    def _read_ahead(self) -> None:
        counts = _Counts.from_state(self._state)
        cursor = Cursor(**self._state["cursor"])
        last_epoch = cursor.epoch
        skips = _SkipsInARow()
        error: BaseException | None = None
        try:
            for document in self._documents:
                cursor = document.cursor
                sample, reason = self._prepare(document, counts)
                skips.count(reason, document)
                if sample is not None:
                    last_epoch = document.cursor.epoch
                    if not self._put(sample):
                        return
                if document.cursor.epoch > last_epoch + 1:
                    raise UserError("a whole round of the documents held none to train on")
                if self._closed.is_set():
                    return
        except BaseException as caught:  # noqa: BLE001  # handed over, and raised where the sample would have been
            error = caught
        self._put(_End(counts.state_dict(cursor), error))

    def _prepare(self, document: Document, counts: "_Counts") -> tuple[Sample | None, str]:
        """The sample of a document, or None and the reason (empty when it is held out)."""
        reason = why_unusable(document)
        if reason:
            counts.skipped[reason] += 1
            return None, reason
        text = str(document.text)
        text_hash = hash_text(text)
        if self._hold_out and is_held_out(text_hash):
            counts.held_out += 1
            return None, ""
        ids = self._tokenizer.encode_prefix(text, self._max_seq_length)
        if len(ids) < 2:
            counts.skipped["fewer than 2 tokens"] += 1
            return None, "fewer than 2 tokens"
        counts.trained += 1
        return Sample(
            document=document,
            ids=ids,
            text_hash=text_hash,
            document_bytes=len(text.encode()),
            predicted_bytes=int(self._tokenizer.piece_bytes[ids[1:]].sum()),
            stream_state=counts.state_dict(document.cursor),
        ), ""

    def _put(self, item: "Sample | _End") -> bool:
        """Queue an item; False when the stream was closed instead."""
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False


@dataclass(frozen=True)
class _End:
    state: dict[str, Any]
    error: BaseException | None


class _Counts:
    """What became of the documents so far."""

    def __init__(self, trained: int = 0, held_out: int = 0, skipped: Mapping[str, int] | None = None) -> None:
        self.trained = trained
        self.held_out = held_out
        self.skipped: Counter[str] = Counter(skipped or {})

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "_Counts":
        return cls(state["trained"], state["held_out"], state["skipped"])

    def state_dict(self, cursor: Cursor) -> dict[str, Any]:
        return {
            "cursor": cursor.state_dict(),
            "trained": self.trained,
            "held_out": self.held_out,
            "skipped": dict(self.skipped),
        }


class _SkipsInARow:
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
