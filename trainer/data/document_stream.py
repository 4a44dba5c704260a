"""Stream the documents of a source from a cursor on, despite broken connections and broken rows."""

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
"""How often a shard on the Hub must fail at the same row before it counts as damaged."""

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class DocumentStream:
    """The documents of a source from a cursor on. Each `iter()` starts at the cursor again.

    A row that can't be read becomes a document with a `fault`. So does the rest of a damaged shard; its cursor is the
    start of the next shard. The same bytes always give the same documents. Iterating ends early once `should_stop`
    returns true.

    Iterating raises UserError if the first row lacks the text column, and SourceUnreachable if a local file can't be
    read or a source on the Hub delivers nothing for `max_stall` seconds.
    """

    source: DataSource
    text_column: str = "text"
    repeat: bool = False
    """Start over at the end. The cursor counts the epochs."""
    cursor: Cursor = field(default_factory=Cursor)
    on_event: Callable[[str, str], None] = lambda kind, detail: None
    """Called with ("retry", what failed and when the next attempt follows) in the iterating thread."""
    max_stall: float = 1800.0
    """Seconds without a document (or a quarter of a megabyte of one) before the Hub counts as unreachable."""
    should_stop: Callable[[], bool] = lambda: False
    timing: RetryTiming = field(default_factory=RetryTiming)
    """Of requests to the Hub."""

    def at(self, cursor: Cursor) -> "DocumentStream":
        """Return the same stream from another cursor on."""
        return replace(self, cursor=cursor)

    def __iter__(self) -> Iterator[Document]:
        position = self.cursor
        # A resumed stream has seen the column before: a row without it is only a broken row.
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
            if not self.repeat or not found:  # a source without documents would repeat forever
                return
            position = Cursor(epoch=position.epoch + 1)

    def _epoch(self, position: Cursor) -> Iterator[tuple[Document, RowOrFault]]:
        for index in range(position.shard, len(self.source.shards)):
            yield from self._shard(replace(position, shard=index, row=position.row if index == position.shard else 0))

    def _shard(self, position: Cursor) -> Iterator[tuple[Document, RowOrFault]]:
        """Yield one file's documents from `position` on; if the rest is damaged, one document stands for all of it.

        A shard on the Hub is first read again a few times, because the transfer may be at fault.
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
                after = Cursor(position.epoch, position.shard + 1)
                yield Document(None, self.source.name, Origin(shard.name, position.row), after, fault), fault
                return

    def _document(self, row: RowOrFault, origin: Origin, after: Cursor) -> Document:
        if isinstance(row, str):
            return Document(None, self.source.name, origin, after, fault=row)
        if self.text_column not in row:
            return Document(None, self._part(row), origin, after, fault=f"no {self.text_column!r}")
        return Document(row[self.text_column], self._part(row), origin, after)

    def _part(self, row: Mapping[str, object]) -> str:
        """Return the part of the source that a row is from: `meta` in SlimPajama, `source` in the embedded library."""
        meta = row.get("meta")
        if isinstance(meta, str) and "redpajama_set_name" in meta:  # some Parquet conversions store it as JSON
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
                f"it has {', '.join(map(repr, row)) or 'none'}. Choose one with --text-column"
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
    """Open what `--dataset` names. For a Hub dataset, a first document has been read when this returns.

    `auto` uses the first dataset of SLIMPAJAMA that delivers a document, otherwise the `embedded` source; it then calls
    `say` and sets the source's `note`. `slimpajama` and all other names have no such fallback. A resumed run passes the
    name and revision that were resolved at its start, and gets exactly the same documents.

    Raises:
        UserError: the dataset does not exist, or not in this form.
        SourceUnreachable: no document arrived within `first_document_seconds` (10 without a network).
        Stopped: `should_stop` returned true; raised within a second.
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
        # From the start of the data: a resumed run may have read all of them.
        attempt = replace(stream(source), cursor=Cursor(), on_event=lambda kind, detail: None, max_stall=seconds / 2)
        try:
            if next(iter(attempt), None) is None:
                raise SourceUnreachable("it contains no document")
        except SourceUnreachable as error:
            raise SourceUnreachable(reason_of(error.__cause__ or error)) from error
        return source

    try:
        return stream(_first_of(names, reach, should_stop, first_document_seconds))
    except SourceUnreachable as error:
        reason = str(error)
    if dataset == "auto":
        note = f"SlimPajama is unreachable ({reason})"
        say(f"{note}. Using the embedded Python library instead. To require SlimPajama: --dataset slimpajama")
        return stream(replace(_embedded(embedded, None), note=note))
    name = "SlimPajama" if dataset == "slimpajama" else dataset
    raise SourceUnreachable(
        f"{name} is unreachable ({reason}). Without a network, use --dataset {PYTHON_LIBRARY} or a local file"
    )


def _embedded(embedded: Callable[[], DataSource], revision: str | None) -> DataSource:
    source = embedded()
    if revision is not None and revision != source.revision:
        raise UserError(
            f"--dataset {source.name} has revision {source.revision[:12]} with this Python, expected {revision[:12]}: "
            "use the Python version that the run started with"
        )
    return source


def _first_of(
    names: Sequence[str],
    reach: Callable[[str, float], DataSource],
    should_stop: Callable[[], bool],
    first_document_seconds: float,
) -> DataSource:
    """Return the first Hub dataset that can be reached. Raises SourceUnreachable with short reasons."""
    end = time.monotonic() + first_document_seconds
    _within(NETWORK_SECONDS, _check_network, should_stop)
    reasons: list[str] = []
    for index, name in enumerate(names):
        share = (end - time.monotonic()) / (len(names) - index)  # one that hangs leaves time for the others
        try:
            return _within(share, partial(reach, name, share), should_stop)
        except SourceUnreachable as error:
            reasons.append(str(error))
    raise SourceUnreachable(", then ".join(dict.fromkeys(reasons)))


def _check_network() -> None:
    """Raise SourceUnreachable if there is no network. Any response is enough; the Hub's own client respects proxies."""
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
    """Return or raise what `work` does; raise SourceUnreachable after `seconds`.

    It runs in a thread that can be abandoned, because libraries wait in `time.sleep`, which can't be interrupted.
    """
    outcomes: queue.SimpleQueue[tuple[Result | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcomes.put((work(), None))
        except BaseException as error:  # noqa: BLE001  # raised in the waiting thread
            outcomes.put((None, error))

    thread = threading.Thread(target=run, name="first document", daemon=True)
    thread.start()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if should_stop():
            raise Stopped
        try:
            result, error = outcomes.get(timeout=POLL_SECONDS)
        except queue.Empty:
            continue
        thread.join()  # it may still release Arrow's memory, and a process that ends meanwhile is aborted
        if error is not None:
            raise error
        return result  # type: ignore[return-value]  # the type that work returns
    raise SourceUnreachable(f"no response within {seconds:.0f} seconds")
