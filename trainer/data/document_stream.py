"""The stream of documents: one source, row after row, from a cursor on, through broken connections and broken rows."""

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from trainer.data.hub_file import POLL_SECONDS, EventFailed, Patience, RetryTiming, Stopped, reason_of
from trainer.data.row_reader import Damaged, RowOrFault, read_rows
from trainer.data.sources import PYTHON_LIBRARY, DataSource, is_local, resolve_source, silence_libraries
from trainer.errors import SourceUnreachable, UserError
from trainer.records import Cursor, Document, Origin

SLIMPAJAMA = ("cerebras/SlimPajama-627B", "DKYoon/SlimPajama-6B")
FIRST_DOCUMENT_SECONDS = 60.0
NETWORK_SECONDS = 10.0
TRIES_FOR_DAMAGE = 3
"""So often a shard on the Hub is read to the same damaged place before it counts as damaged there."""

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class DocumentStream:
    """The documents of a source behind a cursor. Each `iter()` of it begins at the cursor again.

    A row that can't be read is a document with a `fault`, and so is the rest of a shard that is damaged; its cursor
    stands at the next shard. The same bytes always give the same documents. Iterating raises UserError for a first row
    without the text column, and SourceUnreachable for a local file that can't be read and when a source on the Hub
    gives nothing for `max_stall` seconds. It ends early once `should_stop` says so.
    """

    source: DataSource
    text_column: str = "text"
    repeat: bool = False
    """Begin again at the end. The cursors say which epoch it is."""
    cursor: Cursor = field(default_factory=Cursor)
    on_event: Callable[[str, str], None] = lambda kind, detail: None
    """Called with ("retry", what failed and what now) in the thread that iterates."""
    max_stall: float = 1800.0
    """Seconds without a document, or a quarter of a megabyte on the way to one, before the Hub counts as lost."""
    should_stop: Callable[[], bool] = lambda: False
    timing: RetryTiming = field(default_factory=RetryTiming)

    def at(self, cursor: Cursor) -> "DocumentStream":
        """The same documents from another cursor on."""
        return replace(self, cursor=cursor)

    def __iter__(self) -> Iterator[Document]:
        position = self.cursor
        # A stream that goes on has seen the column; from then on a row without it is that row's fault.
        column_seen = position != Cursor()
        while True:
            found = position != replace(position, shard=0, row=0)
            try:
                for document, row in self._epoch(position):
                    if not column_seen and isinstance(row, Mapping):
                        self._check_column(row)
                        column_seen = True
                    found = True
                    yield document
            except Stopped:
                return
            except EventFailed as error:
                raise error.__cause__ or error from None
            if not self.repeat or not found:  # a source without a single document would go round for ever
                return
            position = Cursor(epoch=position.epoch + 1)

    def _epoch(self, position: Cursor) -> Iterator[tuple[Document, RowOrFault]]:
        for index in range(position.shard, len(self.source.shards)):
            yield from self._shard(replace(position, shard=index, row=position.row if index == position.shard else 0))

    def _shard(self, position: Cursor) -> Iterator[tuple[Document, RowOrFault]]:
        """One file's documents from `position` on, and, where the rest of it is damaged, one that stands for the rest.

        A shard on the Hub is read again from there some times before that is believed: it may be the way that is bad.
        """
        shard = self.source.shards[position.shard]
        patience = Patience(
            self.source.name,
            self.max_stall,
            where=lambda: f"{shard.name} row {position.row}",
            on_event=self.on_event,
            should_stop=self.should_stop,
            timing=self.timing,
        )
        damaged_row, tries = -1, 0
        while True:
            try:
                for number, row in read_rows(shard.address, shard.kind, self.text_column, position.row, patience):
                    position = replace(position, row=number + 1)
                    yield self._document(row, Origin(shard.name, number), position), row
                    patience.progress()
                return
            except Damaged as error:
                damaged_row, tries = position.row, tries + 1 if damaged_row == position.row else 1
                if shard.is_remote and tries < TRIES_FOR_DAMAGE:
                    patience.wait(error)
                    continue
                fault = f"the rest of the shard is damaged ({error})"
                behind = Cursor(position.epoch, position.shard + 1)
                yield Document(None, self.source.name, Origin(shard.name, position.row), behind, fault), fault
                return

    def _document(self, row: RowOrFault, origin: Origin, behind: Cursor) -> Document:
        if isinstance(row, str):
            return Document(None, self.source.name, origin, behind, fault=row)
        if self.text_column not in row:
            return Document(None, self._part(row), origin, behind, fault=f"no {self.text_column!r}")
        return Document(row[self.text_column], self._part(row), origin, behind)

    def _part(self, row: Mapping[str, object]) -> str:
        """Which part of the source a row is from: SlimPajama says it in `meta`, the embedded library in `source`."""
        meta = row.get("meta")
        if isinstance(meta, str) and "redpajama_set_name" in meta:  # some conversions to Parquet keep it as JSON
            try:
                meta = json.loads(meta)
            except ValueError:
                meta = None
        named = row.get("source") if self.text_column != "source" else None
        for part in (meta.get("redpajama_set_name") if isinstance(meta, Mapping) else None, named):
            if isinstance(part, str) and part:
                return part
        return self.source.name

    def _check_column(self, row: Mapping[str, object]) -> None:
        if self.text_column not in row:
            raise UserError(
                f"{self.source.name} has no column {self.text_column!r}: "
                f"it has {', '.join(map(repr, row)) or 'none'}. Name one with --text-column"
            )


def open_documents(
    dataset: str,
    *,
    embedded: Callable[[], DataSource],
    say: Callable[[str], None],
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    text_column: str = "text",
    repeat: bool = False,
    cursor: Cursor = Cursor(),  # noqa: B008  # frozen
    on_event: Callable[[str, str], None] = lambda kind, detail: None,
    max_stall: float = 1800.0,
    should_stop: Callable[[], bool] = lambda: False,
    timing: RetryTiming = RetryTiming(),  # noqa: B008  # frozen
    first_document_seconds: float = FIRST_DOCUMENT_SECONDS,
) -> DocumentStream:
    """Open what `--dataset` names. Of a Hub dataset a first document has been read when this returns.

    `auto` is the first of SLIMPAJAMA that gives a document, or else the `embedded` source, which is said and noted in
    the source; `slimpajama` has no such way out; anything else is never replaced. A run that goes on passes the name
    and the revision that were resolved before, and gets the very same documents.

    Raises UserError for what can't be, SourceUnreachable when no document comes within 60 seconds (10 without a
    network), Stopped within a second of `should_stop` saying so.
    """

    def stream(source: DataSource) -> DocumentStream:
        return DocumentStream(
            source=source,
            text_column=text_column,
            repeat=repeat or source.name == PYTHON_LIBRARY,
            cursor=cursor,
            on_event=on_event,
            max_stall=max_stall,
            should_stop=should_stop,
            timing=timing,
        )

    if dataset == PYTHON_LIBRARY:
        return stream(_embedded(embedded, revision))
    if dataset not in ("auto", "slimpajama"):
        if is_local(dataset):
            return stream(resolve_source(dataset, config=config, split=split, revision=revision))
        names: tuple[str, ...] = (dataset,)
    else:
        names = SLIMPAJAMA

    def reach(name: str, seconds: float) -> DataSource:
        source = resolve_source(name, config=config, split=split, revision=revision)
        # From the beginning: a run that goes on may have read all there is.
        attempt = replace(stream(source), cursor=Cursor(), on_event=lambda kind, detail: None, max_stall=seconds / 2)
        try:
            if next(iter(attempt), None) is None:
                raise SourceUnreachable("it holds no document")
        except SourceUnreachable as error:
            raise SourceUnreachable(reason_of(error.__cause__ or error)) from error
        return source

    try:
        return stream(_first_of(names, reach, should_stop, first_document_seconds))
    except SourceUnreachable as error:
        reason = str(error)
    if dataset == "auto":
        say(f"SlimPajama out of reach ({reason}). Using the embedded Python library. To insist: --dataset slimpajama")
        return stream(replace(_embedded(embedded, None), note=f"SlimPajama out of reach ({reason})"))
    name = "SlimPajama" if dataset == "slimpajama" else dataset
    raise SourceUnreachable(f"{name} out of reach ({reason}). Without a network: --dataset {PYTHON_LIBRARY}, or a file")


def _embedded(embedded: Callable[[], DataSource], revision: str | None) -> DataSource:
    source = embedded()
    if revision is not None and revision != source.revision:
        raise UserError(
            f"--dataset {source.name} of this Python is revision {source.revision[:12]}, expected {revision[:12]}: "
            "run it with the Python version of the first time"
        )
    return source


def _first_of(
    names: Sequence[str],
    reach: Callable[[str, float], DataSource],
    should_stop: Callable[[], bool],
    first_document_seconds: float,
) -> DataSource:
    """The first of the Hub datasets that can be reached. Raises SourceUnreachable with the reasons in a few words."""
    end = time.monotonic() + first_document_seconds
    _within(NETWORK_SECONDS, _ask_hub, should_stop)
    reasons: list[str] = []
    for index, name in enumerate(names):
        share = (end - time.monotonic()) / (len(names) - index)  # so that one that hangs leaves time for the others
        try:
            return _within(share, partial(reach, name, share), should_stop)
        except SourceUnreachable as error:
            reasons.append(str(error))
    raise SourceUnreachable(", then ".join(dict.fromkeys(reasons)))


def _ask_hub() -> None:
    """Whether there is a network: any answer will do. Asked through the Hub's own client, so that proxies count."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    if constants.is_offline_mode():
        raise SourceUnreachable("HF_HUB_OFFLINE is set")
    silence_libraries()
    try:
        get_session().head(constants.ENDPOINT, timeout=NETWORK_SECONDS)
    except (HTTPError, OSError) as error:
        raise SourceUnreachable(reason_of(error)) from error


def _within(seconds: float, work: Callable[[], Result], should_stop: Callable[[], bool]) -> Result:
    """What `work` returns or raises, or SourceUnreachable after so many seconds.

    The libraries below wait in `time.sleep`, which nothing interrupts: they do it in a thread that can be left behind.
    """
    answers: queue.SimpleQueue[tuple[Result | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((work(), None))
        except BaseException as error:  # noqa: BLE001  # handed over, and raised by who waits
            answers.put((None, error))

    thread = threading.Thread(target=run, name="first document", daemon=True)
    thread.start()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if should_stop():
            raise Stopped
        try:
            result, error = answers.get(timeout=POLL_SECONDS)
        except queue.Empty:
            continue
        thread.join()  # it may be letting go of what Arrow holds: a process that ends beneath it is aborted
        if error is not None:
            raise error
        return result  # type: ignore[return-value]  # of the kind that work returns
    raise SourceUnreachable(f"no answer within {seconds:.0f} seconds")
