"""Turn documents into samples: a thread reads ahead and tokenizes; each sample carries the state to resume after it."""

import math
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from trainer.data.document_filter import SkipsInARow, hash_text, is_held_out, why_unusable
from trainer.data.document_stream import DocumentStream
from trainer.data.tokenizer import Tokenizer
from trainer.errors import SourceUnreachable, UserError
from trainer.records import Cursor, Document, Sample

ROLLED_BACK = "skipped after a rollback"
"""The reason for skipping a document that the run had to roll back from."""
_OLD_REASONS = {
    "text is no string": "text is not a string",
    "half a surrogate pair": "lone surrogate",
    "passed by after a roll-back": ROLLED_BACK,
}
"""Reason in an older checkpoint → its present wording."""
LONGEST_TEXT_KEPT = 100_000
"""Characters. The text of a prepared sample is cut to this: many samples wait at once, and they have their ids."""


def held_out_samples(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    max_seq_length: int,
    count: int,
    *,
    own_split: bool,
    seconds: float = math.inf,
) -> list[Sample]:
    """Return the first `count` samples that training never sees, or fewer if there are no more.

    Args:
        documents: the training documents from the first one, of which one in 100 is held out. A thread reads them.
        own_split: the documents are a separate split instead, and all of them are held out.
        seconds: how long to wait for them.

    Raises:
        SourceUnreachable: some did not arrive in time. Using only a part would mean another set in each run.
        Exception: what `documents` raise.
    """
    end = time.monotonic() + seconds
    held_out = (
        document
        for document in documents
        if not why_unusable(document) and (own_split or is_held_out(hash_text(str(document.text))))
    )
    stream = SampleStream(
        held_out,
        tokenizer,
        max_seq_length,
        hold_out=False,
        should_stop=lambda: time.monotonic() > end,
        ahead=count,
    )
    samples = list(islice(stream, count))
    stream.close()
    if len(samples) < count and time.monotonic() > end:
        raise SourceUnreachable(f"{count} held-out documents did not arrive within {seconds:.0f} seconds")
    return samples


class SampleStream:
    """An iterator over `Sample`s that a thread prepares ahead of the training step.

    `state_dict()` is the state after the last sample returned; it does not include what was read ahead.
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
        on_fault: Callable[[str], None] = lambda detail: None,
    ) -> None:
        """
        Args:
            documents: a stream positioned at the cursor of `state`.
            hold_out: exclude one document in 100 from training.
            should_stop: checked while waiting; the iteration ends once it returns true.
            state: an earlier `state_dict()`, to whose `passed_by` entries may have been added.
            ahead: number of samples prepared in advance.
            on_fault: called for each row that can't be read (`shard row 17: not JSON`), in the iterating thread, just
                before the next sample; for the last rows, at the end.
        """
        self.waited_seconds = 0.0
        """Seconds spent waiting for the last sample."""
        self._documents = documents
        self._tokenizer = tokenizer
        self._max_seq_length = max_seq_length
        self._hold_out = hold_out
        self._should_stop = should_stop
        self._ahead = ahead
        self._on_fault = on_fault
        self._state: dict[str, Any] = _Counts.from_state(state).state_dict(Cursor(**state["cursor"] if state else {}))
        self._queue: queue.Queue[_Ready | _End] = queue.Queue(maxsize=ahead)
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
            for fault in item.faults:
                self._on_fault(fault)
            if isinstance(item, _End):
                self._state = item.state
                if item.error is not None:
                    raise item.error
                return
            self._state = item.sample.stream_state
            yield item.sample

    def state_dict(self) -> dict[str, Any]:
        """`cursor` (the next document to read), `trained`, `held_out` and `skipped` (reason → count) so far.

        `passed_by`: [epoch, shard, row] of the cursors just after documents that the run had to roll back from. They
        are skipped, and counted as such.
        """
        return dict(self._state)

    def again(self, state: Mapping[str, Any]) -> "SampleStream":
        """Close this stream and return a new one over the same documents, positioned at `state`.

        Raises TypeError if the documents can't be read again from a cursor.
        """
        if not isinstance(self._documents, DocumentStream):
            raise TypeError(f"{type(self._documents).__name__} has no `at(cursor)`, so it can't be rolled back")
        self.close()
        return SampleStream(
            self._documents.at(Cursor(**state["cursor"])),
            self._tokenizer,
            self._max_seq_length,
            hold_out=self._hold_out,
            should_stop=self._should_stop,
            state=state,
            ahead=self._ahead,
            on_fault=self._on_fault,
        )

    def close(self) -> None:
        """Tell the thread to end, without waiting for it: it may be waiting for the network."""
        self._closed.set()

    def _next(self) -> "_Ready | _End | None":
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
        skips = SkipsInARow()
        faults: list[str] = []
        error: BaseException | None = None
        try:
            for document in self._until_closed():
                cursor = document.cursor
                if document.fault is not None:
                    faults.append(f"{document.origin.shard} row {document.origin.row}: {document.fault}")
                sample, reason = self._prepare(document, counts)
                skips.count(reason, document)
                if sample is not None:
                    last_epoch = document.cursor.epoch
                    if not self._put(_Ready(sample, faults)):
                        return
                    faults = []
                if document.cursor.epoch > last_epoch + 1:
                    raise UserError("no document of a complete epoch can be trained on")
                if self._closed.is_set():
                    return
        except BaseException as caught:  # noqa: BLE001  # raised where the next sample would have been
            error = caught
        self._put(_End(counts.state_dict(cursor), error, faults))

    def _until_closed(self) -> Iterable[Document]:
        """Return the documents; a `DocumentStream` also stops waiting for the network once this stream is closed."""
        documents = self._documents
        if not isinstance(documents, DocumentStream):
            return documents
        should_stop = documents.should_stop
        return replace(documents, should_stop=lambda: self._closed.is_set() or should_stop())

    def _prepare(self, document: Document, counts: "_Counts") -> tuple[Sample | None, str]:
        """Return a document's sample, or None and the reason (empty if it is held out)."""
        is_rolled_back = document.cursor in counts.passed_by
        reason = ROLLED_BACK if is_rolled_back else why_unusable(document)
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
            document=document if len(text) <= LONGEST_TEXT_KEPT else replace(document, text=text[:LONGEST_TEXT_KEPT]),
            ids=ids,
            text_hash=text_hash,
            document_bytes=len(text.encode()),
            predicted_bytes=int(self._tokenizer.piece_bytes[ids[1:]].sum()),
            stream_state=counts.state_dict(document.cursor),
        ), ""

    def _put(self, item: "_Ready | _End") -> bool:
        """Queue an item; return False if the stream was closed meanwhile."""
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False


@dataclass(frozen=True)
class _Ready:
    sample: Sample
    faults: list[str]
    """Of the rows between the previous sample and this one."""


@dataclass(frozen=True)
class _End:
    state: dict[str, Any]
    error: BaseException | None
    faults: list[str]


class _Counts:
    """How many documents were trained on, held out and skipped so far."""

    def __init__(
        self, trained: int, held_out: int, skipped: Mapping[str, int], passed_by: Iterable[Sequence[int]]
    ) -> None:
        self.trained = trained
        self.held_out = held_out
        self.skipped: Counter[str] = Counter(skipped)
        self.passed_by = {Cursor(*place) for place in passed_by}

    @classmethod
    def from_state(cls, state: Mapping[str, Any] | None) -> "_Counts":
        if state is None:
            return cls(0, 0, {}, ())
        skipped: Counter[str] = Counter()
        for reason, count in state["skipped"].items():
            skipped[_OLD_REASONS.get(reason, reason)] += count
        return cls(state["trained"], state["held_out"], skipped, state.get("passed_by", ()))

    def state_dict(self, cursor: Cursor) -> dict[str, Any]:
        return {
            "cursor": cursor.state_dict(),
            "trained": self.trained,
            "held_out": self.held_out,
            "skipped": dict(self.skipped),
            "passed_by": sorted([place.epoch, place.shard, place.row] for place in self.passed_by),
        }
