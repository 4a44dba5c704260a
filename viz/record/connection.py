"""The connection that writes a store: whole transactions, and patience with other programs that hold the file."""

import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from viz.record.schema import Statement

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
