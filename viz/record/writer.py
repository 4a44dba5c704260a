"""The only writer of a run store: rows are queued, and a thread commits them.

`viz/record/schema.py` describes the tables. Everything else in a run's folder can be rebuilt from them.
"""

import errno
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from viz.record import schema
from viz.record.files import is_on_network, lock_holders
from viz.record.reader import StoreReader, is_blank
from viz.record.schema import Row, Statement

Fetch = Callable[..., list[tuple[Any, ...]]]  # `StoreConnection.fetch`: SQL and values -> rows
LOCK_SECONDS = 0.2  # SQLite's busy timeout
COMMIT_SECONDS = 0.3


def is_lock_error(error: Exception) -> bool:
    """Whether another process holds a lock, as opposed to a store that can't be written."""
    # SQLITE_PROTOCOL: too many processes began a transaction at once. SQLITE_LOCKED needs a shared cache.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_PROTOCOL)


class StoreConnection:
    """The writer's connection, for one thread at a time. Every method may raise sqlite3.Error."""

    def __init__(self, path: Path, opening: Sequence[Statement], *, use_wal: bool) -> None:
        """Open the file, or create it, and execute `opening` in one transaction.

        `use_wal`: keep a write-ahead log, which readers don't block; otherwise a rollback journal.
        """
        self.is_locked = False
        """Whether the last call failed because another process holds a lock."""
        self.times_locked = 0
        # Only `transact` begins and ends transactions: isolation_level None.
        self._db = sqlite3.connect(path, LOCK_SECONDS, check_same_thread=False, isolation_level=None)
        try:
            self._db.execute("PRAGMA page_size = 8192")  # rows of `documents` take 1 to 2 kB: 4 kB pages waste a third
            self._db.execute(f"PRAGMA journal_mode = {'WAL' if use_wal else 'DELETE'}")
            # FULL: each commit is synced. In WAL mode syncing the log is enough, since the next opener replays it.
            self._db.execute("PRAGMA synchronous = FULL")
            self.transact(opening)
        except BaseException:
            self._db.close()
            raise

    @contextmanager
    def _noting_locks(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            self.is_locked = is_lock_error(error)
            self.times_locked += self.is_locked
            raise
        self.is_locked = False

    def transact(self, statements: Sequence[Statement]) -> None:
        """Execute all statements in one transaction, which is on disk on return; or raise and execute none."""
        with self._noting_locks():
            try:
                self._db.execute("BEGIN IMMEDIATE")
                for statement in statements:
                    self._db.execute(*statement)
                self._db.commit()
            except BaseException:
                # SQLite may have rolled back by itself; if the disk fails here too, the next access rolls back.
                with suppress(sqlite3.Error):
                    self._db.rollback()
                raise

    def fetch(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        with self._noting_locks():
            return self._db.execute(sql, values).fetchall()

    def close(self) -> None:
        """Close it and leave one file, unless a reader keeps the store open for a second. May be called twice."""
        until = time.monotonic() + 1
        try:
            # All rows move into the file itself, so that a copy of the file alone is complete.
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            while not self._has_left_log() and time.monotonic() < until:
                time.sleep(0.02)  # the busy timeout does not apply to this pragma
        except (sqlite3.OperationalError, sqlite3.ProgrammingError):
            pass  # a reader is in the middle of a transaction: the rows are safe in the log; or it was closed before
        finally:
            self._db.close()

    def _has_left_log(self) -> bool:
        try:
            self._db.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.OperationalError:
            return False
        return True


Change = tuple[Statement, ...]  # what belongs in one transaction
Call = Callable[[], object]


@dataclass(frozen=True)
class Upkeep:
    """Changes that follow from what is on disk: `next_change` is called until it returns none."""

    next_change: Callable[[Fetch], Change]


Action = list[tuple[str, Row]] | Change | Call | Upkeep


@dataclass(frozen=True)
class WriterLimits:
    """When a `StoreWriter` commits, when a call waits, and when it reports a lock. A call is one step or one row."""

    commit_calls: int = 1000
    """Calls in one transaction at most."""
    queue_calls: int = 10_000
    """Calls that the thread has not taken in yet."""
    waiting_bytes: int = 2**30
    """Rows in memory. 2.8 kB a document of 256 tokens: 380,000 documents, 4.9 hours at 46 ms a step."""
    patience: float = 5.0
    """Seconds that a call waits for another process before it reports it."""


class StoreWriter:
    """The only writer of a store. Rows are queued; a thread commits them about every 0.3 seconds.

    A lock of another process (a reader's transaction with a rollback journal, a writer's with either journal) is no
    failure: the thread tries again until the lock is released. Meanwhile rows wait in memory, arrays encoded, up to
    `WriterLimits.waiting_bytes`; only then does a call wait.

    Storage that fails (a full disk, a lost mount) raises OSError at the next call, whichever it is. Nothing is lost:
    what was not committed is kept, including what the call that raised was given, until `recover` writes it.
    A row that breaks the schema, such as a second one for a (step, rank), raises RuntimeError at this
    and every later call.
    """

    def __init__(
        self,
        path: Path,
        run: Mapping[str, Any],
        *,
        resume: bool = False,
        say: Callable[[str], None] = print,
        network_file_system: bool | None = None,
        limits: WriterLimits | None = None,
    ) -> None:
        """Create the store (FileExistsError if it exists) or, with `resume`, open it (FileNotFoundError if it doesn't).

        `run`: columns of the table `run`; when resuming they replace the stored ones, except `run_id` and `started`.
        `say`: called with one line that names the process that holds a lock, by whichever thread waits.
        `network_file_system`: whether other machines may open the file; None: find out.
        Raises ValueError for a file that is no store or has a newer version, OSError for one that can't be written.
        """
        self.path = path
        self._say = say
        self._limits = limits or WriterLimits()
        self._wake = threading.Condition()
        self._queue: list[Action] = []
        self._hurry = self._closing = False
        self._failure: Exception | None = None
        self._warned = False
        # Only the writer's thread touches these: what it has taken in and not yet committed, and how large that is.
        self._batch: deque[Change | Call | Upkeep] = deque()
        self._batch_bytes = 0
        if resume:
            with StoreReader(path) as old:  # refuses what is missing, foreign or newer
                if not old.is_current:
                    raise ValueError(f"{path} is the record of an earlier version: it can be viewed but not resumed")
            kept = {name: value for name, value in run.items() if name not in ("run_id", "started")}
            opening = [schema.update_statement(schema.make_row("run", kept | {"ended": None, "outcome": None}))]
        else:
            row = schema.make_row("run", {"started": time.time(), "note": ""} | dict(run))
            if path.exists() and not is_blank(path):
                advice = "there is a run already: resume it (resume_from=N) or move it away"
                raise FileExistsError(errno.EEXIST, advice, str(path))
            opening = [*schema.create_statements(), schema.insert_statement("run", row)]
        if network_file_system is None:
            network_file_system = is_on_network(path.parent)
        # A log's index is shared memory, which processes on other machines don't see.
        self._db = self._open(opening, use_wal=not network_file_system)
        self._thread = threading.Thread(target=self._write, name="store-writer", daemon=True)
        self._thread.start()

    def _open(self, opening: Sequence[Statement], *, use_wal: bool) -> StoreConnection:
        began = time.monotonic()
        while True:
            try:
                return StoreConnection(self.path, opening, use_wal=use_wal)
            except sqlite3.Error as error:
                if not is_lock_error(error):
                    raise self._surfaced(error) from error
            if time.monotonic() - began > self._limits.patience:
                self._warn_of_lock()
            time.sleep(0.02)  # the busy timeout does not apply to `PRAGMA journal_mode`

    @property
    def times_locked(self) -> int:
        """How often a transaction found the store locked by another process."""
        return self._db.times_locked

    def add(self, table: str, values: Mapping[str, Any]) -> None:
        """Queue one row. Returns at once, like `add_rows`."""
        self.add_rows([(table, schema.make_row(table, values))])

    def add_rows(self, rows: Iterable[tuple[str, Row]]) -> None:
        """Queue rows of `rows_of`, which are committed together. Returns at once, unless hours of rows are waiting."""
        self._put(list(rows))

    def update_run(self, **fields: Any) -> None:
        """Queue an update of columns of the row of `run`."""
        self._put((schema.update_statement(schema.make_row("run", fields)),))

    def after_commit(self, function: Call) -> None:
        """Queue a call, made in the writer's thread once everything queued before it is on disk."""
        self._put(function)

    def keep_up(self, next_change: Callable[[Fetch], Change]) -> None:
        """Queue changes that follow from what is on disk, applied one by one in the writer's thread until one is empty.

        Rows queued meanwhile are committed in between. A change is committed before anything queued after the call of
        `next_change`, so that it never affects rows that the call did not see.
        """
        self._put(Upkeep(next_change))

    def flush(self) -> None:
        """Return when all rows so far are on disk, however long another process locks the store."""
        done = self._hasten()

        def is_committed() -> bool:
            if not done.wait(0.05):
                self._raise_failure()
            return done.is_set()

        self._wait_until(is_committed)

    def _hasten(self) -> threading.Event:
        """Commit soon; return an event that is set once all rows so far are on disk."""
        done = threading.Event()
        self.after_commit(done.set)
        with self._wake:
            self._hurry = True
            self._wake.notify_all()
        return done

    def rewind(self, step: int, then: Call = lambda: None) -> None:
        """Delete the rows from `step` on, never events, in one transaction; return when that is on disk.

        While another process locks the store, it returns at once; the rows are deleted before rows that are added
        later are written. `then` is called in the writer's thread once they are deleted.
        """
        self._put(tuple((f"DELETE FROM {table} WHERE step >= ?", (step,)) for table in schema.REWOUND), then)
        done = self._hasten()
        while not done.wait(0.05) and not self._db.is_locked:
            self._raise_failure()

    def recover(self) -> None:
        """Try again to write everything that waits after a failure; return when it is on disk.

        Then the store works as before. Raises OSError if it still can't be written; the rows are kept.
        """
        with self._wake:
            failed = self._failure is not None and isinstance(self._surfaced(self._failure), OSError)
            if failed and not self._closing:
                self._failure = None  # the thread continues with the rows it kept
        self.flush()

    def close(self) -> None:
        """Write what is queued and leave one file, unless a reader has the store open. May be called twice.

        After a failure nothing more is written: OSError is raised, but the file is closed.
        """
        with self._wake:
            self._closing = True
            self._wake.notify_all()

        def has_ended() -> bool:
            self._thread.join(0.05)
            return not self._thread.is_alive()

        self._wait_until(has_ended)
        self._db.close()
        self._raise_failure()

    def _put(self, *actions: Action) -> None:
        if len(self._queue) >= self._limits.queue_calls and not self._failure:
            self._wait_until(lambda: self._has_room(0.05))
        with self._wake:
            if not self._closing:
                self._queue += actions  # also after a failure: `recover` writes these rows
            self._raise_failure()
            if self._closing:
                raise RuntimeError(f"{self.path}: the store is closed")
            if len(self._queue) >= self._limits.commit_calls:
                self._wake.notify_all()  # otherwise it wakes within COMMIT_SECONDS: a wake-up costs more than a row

    def _has_room(self, seconds: float) -> bool:
        with self._wake:
            return self._wake.wait_for(
                lambda: len(self._queue) < self._limits.queue_calls or bool(self._failure), seconds
            )

    def _wait_until(self, is_over: Callable[[], bool]) -> None:
        """Call `is_over`, which waits a moment, until it returns True; report once if another process delays it."""
        began = time.monotonic()
        while not is_over():
            if self._db.is_locked and time.monotonic() - began > self._limits.patience:
                self._warn_of_lock()

    def _warn_of_lock(self) -> None:
        """Report that another process locks the store, once per lock."""
        if self._warned:
            return
        self._warned = True
        names = ", ".join(lock_holders(self.path)) or "unknown process"
        self._say(f"waiting for another process that locks {self.path} ({names}); rows stay in memory until then")

    def _write(self) -> None:
        """The writer's thread: take in what is queued, commit it, run the queued calls."""
        while True:
            with self._wake:
                self._wake.wait_for(self._is_due, COMMIT_SECONDS)
                closing, self._hurry = self._closing, False
                failed = self._failure is not None
            if not failed:
                try:
                    if self._batch_bytes < self._limits.waiting_bytes:
                        self._take_in()
                    self._carry_out()
                except Exception as error:  # noqa: BLE001 - whatever it is, it is raised again in the trainer's thread
                    if is_lock_error(error):
                        time.sleep(0.02)  # not every lock error comes after the busy timeout
                    else:
                        failed = True
                        with self._wake:
                            self._failure = error
                            self._wake.notify_all()
            if closing and (failed or not (self._queue or self._batch)):
                return

    def _is_due(self) -> bool:
        return self._closing or (not self._failure and (self._hurry or len(self._queue) >= self._limits.commit_calls))

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
        """Commit the batch. Only what was committed leaves it, so that nothing is lost in a failure."""
        while self._batch:
            first = self._batch[0]
            if isinstance(first, Upkeep):
                change = first.next_change(self._db.fetch)
                self._batch.popleft()  # not before: if reading fails, the call is repeated
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
            for action in islice(self._batch, self._limits.commit_calls):
                if not isinstance(action, tuple):
                    break
                changes.append(action)
            self._db.transact([statement for change in changes for statement in change])
            self._warned = False
            for change in changes:
                self._batch.popleft()
                self._batch_bytes -= _size(change)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._surfaced(self._failure) from self._failure

    def _surfaced(self, error: Exception) -> Exception:
        if isinstance(error, sqlite3.IntegrityError) or not isinstance(error, OSError | sqlite3.Error):
            return RuntimeError(f"{self.path}: a row breaks the schema ({error})")
        full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        return OSError(errno.ENOSPC if full else errno.EIO, f"the store can't be written ({error})", str(self.path))


def _size(change: Change) -> int:
    """Return roughly the bytes of memory of a change: texts, blobs and Python's overhead per value."""
    return sum(200 + sum(50 + (len(v) if isinstance(v, str | bytes) else 0) for v in values) for _, values in change)
