"""The run store: one SQLite file, `run.db`, that one writer fills and any number of readers read meanwhile.

Everything else in the folder can be made again from it. Tables: `run` (one row), `steps` and `documents` (one row for
each step and rank), `text_samples`, `evaluations` (one row for a whole split, whose `source` is '', and one for each
source in it), `probes` (one row each time that a document was measured again), `events`. `viz/record/schema.py`
declares them. Times are UNIX seconds.
Numbers that are not finite: NaN is kept as NULL and read back as NaN; infinities are kept as they are. A step whose
logits were not finite has such a loss and such an accuracy, and no ranks: `token_ranks` is then None, and NULL.

What `TrainingVisualizer.update(metrics, input_text, output_text)` takes in `metrics`. Every key but `step` may be
missing or None and is then NULL; an unknown key is refused. Arrays are encoded later, by another thread: leave them
unchanged.

    step            int, 0-based index of the document; rank: int, 0 where there is one process

    a row of `steps`, if there is a `loss`:
    loss            mean over the document's predictions, nats per token, measured before the update
    accuracy        share of predictions whose most likely token is the true one, 0...1
    throughput      predictions / wall seconds since the step before, waits included
    learning_rate   base rate of the step
    gradient_norm   L2 norm before clipping
    tokens          number of predictions; bytes: UTF-8 bytes of the text that they spell
    seconds         wall time since the step before; seconds_waited: the share of it that was spent waiting for data
    unigram_entropy entropy of the frequencies of all tokens so far, nats per token

    a row of `documents`, if there are `token_ids`:
    source          which part of the data (`RedPajamaC4`); shard, row: where the document stands
    text_hash       SHA-256 of the whole text; document_bytes: UTF-8 bytes of the whole text
    token_ids       (T,) int, list or array; token_losses: (T-1,) float, nats, kept as float16 (`viz/record/schema.py`)
    token_ranks     (T-1,) int, how many tokens were held more likely than the true one
                    (all three become NULL where `viz/stats/retention.py` no longer keeps them)

    a row of `text_samples`, if there is a `prompt`, an `error`, an input text or an output text:
    prompt          what the model was given; reference: how the document goes on after it
    error           why there is no output; source, accuracy: as above
"""

import errno
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from viz.record import schema
from viz.record.files import is_on_network, lock_holders
from viz.record.reader import COLUMNS, Columns, StoreReader, is_blank
from viz.record.schema import Row, Statement, decode_array, encode_array

Fetch = Callable[..., list[tuple[Any, ...]]]  # `StoreConnection.fetch`: SQL and values -> rows
LOCK_SECONDS = 0.2  # how long SQLite itself tries for a lock, before `meanwhile` is called and it tries again
_HELD = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)


class StoreConnection:
    """Used by one thread at a time. A store that another program holds is no failure here: it is waited for."""

    def __init__(
        self, path: Path, opening: Sequence[Statement], *, log: bool, meanwhile: Callable[[float], object]
    ) -> None:
        """Open the file, or make it, and carry out `opening` in one transaction. Raises sqlite3.Error.

        `log`: keep a write-ahead log, which readers don't block; else a rollback journal.
        `meanwhile`: called a few times a second while another program holds the store, with the seconds so far.
        """
        self.held_since: float | None = None
        """Since when (`time.monotonic`) another program keeps a call here waiting, if one does."""
        self._meanwhile = meanwhile
        # Transactions are begun and ended by `transact` alone: isolation_level None.
        self._db = sqlite3.connect(path, LOCK_SECONDS, check_same_thread=False, isolation_level=None)
        try:
            self._db.execute("PRAGMA page_size = 8192")  # rows of `documents` are 1 to 2 kB: of 4 kB a third is left
            self._set_journal("WAL" if log else "DELETE")
            # FULL: each commit is synced. In WAL mode the sync of the log is enough, for the next opener replays it.
            self._db.execute("PRAGMA synchronous = FULL")
            self.transact(opening)
        except BaseException:
            self._db.close()
            raise

    def _set_journal(self, mode: str) -> None:
        while True:
            try:
                self._db.execute(f"PRAGMA journal_mode = {mode}")
                break
            except sqlite3.OperationalError as error:
                self._wait(error)
        self.held_since = None

    def transact(self, statements: Sequence[Statement]) -> None:
        """All statements in one transaction, on disk for good on return; or sqlite3.Error, and none of them."""
        done = 0
        try:
            while True:
                try:
                    if not self._db.in_transaction:  # SQLite may have given it up, and with it what was done
                        done = 0
                        self._db.execute("BEGIN IMMEDIATE")
                    while done < len(statements):
                        self._db.execute(*statements[done])
                        done += 1
                    self._db.commit()
                    break
                except sqlite3.OperationalError as error:
                    self._wait(error)
        except BaseException:
            # SQLite has undone it by itself, or does now; where the disk fails that too, the next access does.
            with suppress(sqlite3.Error):
                self._db.rollback()
            raise
        finally:
            self.held_since = None

    def fetch(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query, however long another program holds the store. Raises sqlite3.Error."""
        try:
            while True:
                try:
                    return self._db.execute(sql, values).fetchall()
                except sqlite3.OperationalError as error:
                    self._wait(error)
        finally:
            self.held_since = None

    def _wait(self, error: sqlite3.OperationalError) -> None:
        """Raises the error unless it says that another program holds the store."""
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _HELD:
            raise error
        if self.held_since is None:
            self.held_since = time.monotonic()
        time.sleep(0.02)  # some of these come at once, without SQLite's own wait
        self._meanwhile(time.monotonic() - self.held_since)

    def close(self) -> None:
        """Close it and leave one file, unless a reader holds the store open for a second. Twice is once."""
        until = time.monotonic() + 1
        try:
            # All rows are in the file itself, whoever holds it open: who copies that alone has them.
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            while not self._has_left_log() and time.monotonic() < until:
                time.sleep(0.02)  # SQLite does not wait for this by itself
        except (sqlite3.OperationalError, sqlite3.ProgrammingError):
            pass  # a reader is in the middle of a transaction: the rows are safe in the log; or closed before
        finally:
            self._db.close()

    def _has_left_log(self) -> bool:
        try:
            self._db.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.OperationalError:
            return False
        return True


__all__ = ["COLUMNS", "Columns", "StoreReader", "StoreWriter", "decode_array", "encode_array"]

Change = tuple[Statement, ...]  # what belongs into one transaction
Call = Callable[[], object]


@dataclass(frozen=True)
class Upkeep:
    """A change that follows from what is on disk by then. Asked again and again, until it is empty."""

    next_change: Callable[[Fetch], Change]


Action = list[tuple[str, Row]] | Change | Call | Upkeep


class StoreWriter:
    """The one writer of a store. Rows are queued; a thread commits them about every 0.3 seconds.

    Another program that holds the store (a reader's open transaction beside a rollback journal, a writer's beside any)
    is no failure: the thread tries again until it is let through, however long. Meanwhile rows wait in memory, arrays
    encoded, up to `WAITING_BYTES`; only then does a call wait.

    Storage that fails (a full disk, a lost mount) surfaces as OSError at the next call, whichever it is. Nothing is
    lost by that: what was not committed is kept, also what the call that raised was given, until `recover` writes it.
    A row that breaks the schema, such as a second one for a (step, rank), surfaces as RuntimeError, for good.
    """

    COMMIT_SECONDS = 0.3
    COMMIT_CALLS = 1000  # a call is one step with its document and its generation, or one other row
    QUEUE_CALLS = 10_000  # that the thread has not taken in yet
    WAITING_BYTES = 2**30  # 2.8 kB a document of 256 tokens: 380,000 of them, 4.9 hours at 46 ms a step
    PATIENCE = 5.0  # seconds that `flush` and `close` wait for another program before they say so

    def __init__(
        self, path: Path, run: Mapping[str, Any], *, resume: bool = False, say: Callable[[str], None] = print
    ) -> None:
        """Make the store (FileExistsError if it is there) or, with `resume`, open it (FileNotFoundError if it is not).

        `run`: columns of the table `run`; when resuming they replace what it holds, except `run_id` and `started`.
        `say`: told in one line, by the thread that waits, which file another program holds.
        Raises ValueError for a file that is no store or is of a newer version, OSError for one that can't be written.
        """
        self.path = path
        self._say = say
        self._wake = threading.Condition()
        self._queue: list[Action] = []
        self._hurry = self._closing = False
        self._failure: Exception | None = None
        self._told = False
        # Only the writer's thread touches these: what it has taken in and not yet committed, and how large that is.
        self._batch: deque[Change | Call | Upkeep] = deque()
        self._batch_bytes = 0
        self._thread: threading.Thread | None = None
        if resume:
            with StoreReader(path) as old:  # refuses what is missing, foreign or newer
                if old.version < schema.VERSION:
                    raise ValueError(
                        f"{path} is the record of an earlier version, which can be read but not gone on with"
                    )
            kept = {name: value for name, value in run.items() if name not in ("run_id", "started")}
            opening = [schema.update_statement(schema.make_row("run", kept | {"ended": None, "outcome": None}))]
        else:
            row = schema.make_row("run", {"started": time.time(), "note": ""} | dict(run))
            if path.exists() and not is_blank(path):
                advice = "there is a run already: continue it (resume_from=N) or move it away"
                raise FileExistsError(errno.EEXIST, advice, str(path))
            opening = [*schema.create_statements(), schema.insert_statement("run", row)]
        log = not is_on_network(path.parent)  # a log's memory is shared by processes of one machine only
        try:
            self._db = StoreConnection(path, opening, log=log, meanwhile=self._while_held)
        except sqlite3.Error as error:
            raise self._surfaced(error) from error
        self._thread = threading.Thread(target=self._write, name="store-writer", daemon=True)
        self._thread.start()

    def add(self, table: str, values: Mapping[str, Any]) -> None:
        """Queue one row. Returns at once, as `add_rows` does."""
        self.add_rows([(table, schema.make_row(table, values))])

    def add_rows(self, rows: Iterable[tuple[str, Row]]) -> None:
        """Queue rows of `rows_of`; they are committed together. Returns at once, unless hours of rows wait already."""
        self._put(list(rows))

    def update_run(self, **fields: Any) -> None:
        """Queue a change to columns of the row of `run`."""
        self._put((schema.update_statement(schema.make_row("run", fields)),))

    def after_commit(self, function: Call) -> None:
        """Queue a call, made in the writer's thread once everything queued before it is on disk for good."""
        self._put(function)

    def keep_up(self, next_change: Callable[[Fetch], Change]) -> None:
        """Queue changes that follow from what is on disk: made one by one in the writer's thread, until one is empty.

        Rows queued meanwhile are committed in between. A change is committed before anything that was queued after it
        was asked for, so that it never meets rows that it does not know.
        """
        self._put(Upkeep(next_change))

    def flush(self) -> None:
        """Return when all rows so far are on disk for good, however long another program holds the store."""
        done = self._hasten()

        def is_committed() -> bool:
            if not done.wait(0.05):
                self._raise_failure()
            return done.is_set()

        self._wait_until(is_committed)

    def _hasten(self) -> threading.Event:
        """Set once all rows so far are on disk for good: soon."""
        done = threading.Event()
        self.after_commit(done.set)
        with self._wake:
            self._hurry = True
            self._wake.notify_all()
        return done

    def rewind(self, step: int, then: Call = lambda: None) -> None:
        """Delete the rows from `step` on, never events, in one transaction; returns when that is on disk.

        While another program holds the store it returns at once; the rows then go before any row that is added later
        comes. `then` is called in the writer's thread once they are gone.
        """
        self._put(tuple((f"DELETE FROM {table} WHERE step >= ?", (step,)) for table in schema.REWOUND), then)
        done = self._hasten()
        while not done.wait(0.05) and self._db.held_since is None:
            self._raise_failure()

    def recover(self) -> None:
        """Try once more to write all that waits after a failure; returns when it is on disk for good.

        Then the store works as before. Raises OSError if it still can't be written: what waits is kept.
        """
        with self._wake:
            failed = self._failure is not None and isinstance(self._surfaced(self._failure), OSError)
            if failed and not self._closing:
                self._failure = None  # the thread goes on with what it kept
        self.flush()

    def close(self) -> None:
        """Write what is queued and leave one file, unless a reader still holds the store open. Twice is once.

        After a failure nothing is written any more; OSError is raised, and the file is closed all the same.
        """
        with self._wake:
            self._closing = True
            self._wake.notify_all()

        thread = self._thread
        assert thread is not None

        def has_ended() -> bool:
            thread.join(0.05)
            return not thread.is_alive()

        self._wait_until(has_ended)
        self._db.close()
        self._raise_failure()

    def _put(self, *actions: Action) -> None:
        if len(self._queue) >= self.QUEUE_CALLS and not self._failure:
            self._wait_until(lambda: self._has_room(0.05))
        with self._wake:
            if not self._closing:
                self._queue += actions  # also after a failure: `recover` writes what the call was given
            self._raise_failure()
            if self._closing:
                raise RuntimeError(f"{self.path}: the store is closed")
            if len(self._queue) >= self.COMMIT_CALLS:
                self._wake.notify_all()  # below that it wakes by itself: to wake it costs the trainer more than a row

    def _has_room(self, seconds: float) -> bool:
        with self._wake:
            return self._wake.wait_for(lambda: len(self._queue) < self.QUEUE_CALLS or bool(self._failure), seconds)

    def _wait_until(self, is_over: Callable[[], bool]) -> None:
        """Ask `is_over`, which takes its time, until it is so; say it once if another program makes that long."""
        began = time.monotonic()
        while not is_over():
            if self._db.held_since is not None and time.monotonic() - began > self.PATIENCE:
                self._tell_holder()

    def _tell_holder(self) -> None:
        """Say that another program holds the store, once until it has let go."""
        if self._told:
            return
        self._told = True
        names = ", ".join(lock_holders(self.path)) or "which one is not known"
        self._say(f"waiting for another program that holds {self.path} ({names}); rows are kept until it lets go")

    def _write(self) -> None:
        """The writer's thread: take in what is queued, commit it, call who asked to be."""
        while True:
            with self._wake:
                self._wake.wait_for(self._is_due, self.COMMIT_SECONDS)
                closing, self._hurry = self._closing, False
                failed = self._failure is not None
            if not failed:
                try:
                    self._take_in()
                    self._carry_out()
                except Exception as error:  # noqa: BLE001 - whatever it is, it is raised again in the trainer's thread
                    with self._wake:
                        self._failure = error
                        self._wake.notify_all()
            if closing:
                return

    def _is_due(self) -> bool:
        return self._closing or (not self._failure and (self._hurry or len(self._queue) >= self.COMMIT_CALLS))

    def _take_in(self) -> None:
        with self._wake:
            actions, self._queue = self._queue, []
            self._wake.notify_all()
        for action in actions:
            if isinstance(action, list):
                action = tuple(schema.insert_statement(table, row) for table, row in action)
            if isinstance(action, tuple):
                self._batch_bytes += _size(action)
            self._batch.append(action)

    def _carry_out(self) -> None:
        """Commit the batch. What is committed leaves it, and nothing else does: a failure finds the rest whole."""
        while self._batch:
            first = self._batch[0]
            if isinstance(first, Upkeep):
                change = first.next_change(self._db.fetch)
                self._batch.popleft()  # not before: where reading fails, it is asked again
                if change:
                    self._batch.appendleft(change)
                    self._batch_bytes += _size(change)
                    self._batch.append(first)
                continue
            if not isinstance(first, tuple):
                self._batch.popleft()
                first()
                continue
            changes: list[Change] = []
            for action in islice(self._batch, self.COMMIT_CALLS):
                if not isinstance(action, tuple):
                    break
                changes.append(action)
            self._db.transact([statement for change in changes for statement in change])
            self._told = False
            for change in changes:
                self._batch.popleft()
                self._batch_bytes -= _size(change)

    def _while_held(self, seconds: float) -> None:
        """Another program holds the store: what is queued meanwhile is taken in, where it takes less memory."""
        if self._batch_bytes < self.WAITING_BYTES:
            self._take_in()
        if self._thread is None and seconds > self.PATIENCE:
            self._tell_holder()  # it is still being opened: nobody waits in another thread

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._surfaced(self._failure) from self._failure

    def _surfaced(self, error: Exception) -> Exception:
        if isinstance(error, sqlite3.IntegrityError) or not isinstance(error, OSError | sqlite3.Error):
            return RuntimeError(f"{self.path}: a row that breaks the schema ({error})")
        full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        return OSError(errno.ENOSPC if full else errno.EIO, f"the store can't be written ({error})", str(self.path))


def _size(change: Change) -> int:
    """Bytes of memory that a change takes, roughly: its texts and blobs, and Python's own share of each value."""
    return sum(200 + sum(50 + (len(v) if isinstance(v, str | bytes) else 0) for v in values) for _, values in change)
