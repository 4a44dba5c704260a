"""A run that is followed while it is written, from before its store exists until after it is deleted."""

import math
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from viz.record.reader import StoreReader, is_blank
from viz.record.runs import is_locked, record_of
from viz.record.schema import Row
from viz.stats.averages import WINDOW
from viz.stats.series import Averages, Series
from viz.views.token_text import Speller, speller

FRESH_SECONDS = 0.25
MOST_WINDOWS = 4
"""How many averages over other windows are kept."""


class NoRun(Exception):
    """There is no readable run. `state`: `waiting` (no run yet), `gone` or `unreadable`."""

    def __init__(self, state: str, reason: str) -> None:
        super().__init__(reason)
        self.state = state


class LiveRun:
    """The run in a folder, to be used within `reading`. Never writes to the folder."""

    def __init__(self, folder: Path, fresh_seconds: float = FRESH_SECONDS) -> None:
        """`folder`: of the record, or the one passed to `--out`; it need not exist yet.

        `fresh_seconds`: the store is not read again sooner than this.
        """
        self.fresh_seconds = fresh_seconds
        self.lock = threading.RLock()
        self.folder = folder
        self.record = folder
        """The folder that contains `run.db`, or did last."""
        self.edition = time.time_ns() // 1_000_000  # so that a restarted server never repeats one
        """Changes when the run went back or another run took its place: everything read before is void."""
        self._store: StoreReader | None = None
        self._identity: tuple[object, object] | None = None
        self._depth = 0
        self._is_locked = False
        self._forget()

    def _forget(self) -> None:
        self._read_at = -math.inf
        self.series = Series()
        self.run: Row = {}
        self._rewinds: int | None = None
        self._averages: dict[int, Averages] = {}
        self._speller: Speller | None = None
        self._has_speller = False
        self.edition += 1

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Context for one thread at a time in which the run is up to date. Raises NoRun if it can't be read.

        The store is open only within: SQLite merges the log into `run.db` at the end of a run only if no other
        connection is open.
        """
        with self.lock:
            self._depth += 1
            try:
                if self._depth == 1:
                    self._refresh()
                yield
            finally:
                self._depth -= 1
                if not self._depth and self._store is not None:
                    self._store.close()
                    self._store = None

    @property
    def store(self) -> StoreReader:
        assert self._store is not None, "the store is only open within `reading`"
        return self._store

    def _refresh(self) -> None:
        try:
            self._open()
            run = self.store.run()
            # Not the inode: a file created after another was deleted may get the same one.
            identity = (run.get("run_id"), run.get("started"))
            if identity != self._identity:
                self._forget()
            self._identity = identity
            if time.monotonic() - self._read_at < self.fresh_seconds:
                return
            rewinds = self.store.count_rewinds()
            if self._rewinds not in (None, rewinds):
                self._forget()
            self.run, self._rewinds = run, rewinds
            first = self.series.size
            self.series.read(self.store)
            new = {name: values[first:] for name, values in self.series.columns().items()}
            for averages in self._averages.values():
                averages.extend(new)
        except FileNotFoundError as error:
            self._forget()
            raise NoRun("gone", f"{self.record / 'run.db'} no longer exists") from error
        except (ValueError, KeyError, TypeError, OSError, sqlite3.Error) as error:
            self._forget()
            raise NoRun("unreadable", str(error)) from error
        self._is_locked = is_locked(self.record)
        self._read_at = time.monotonic()

    def _open(self) -> None:
        """Open the store that is in the folder now. Raises FileNotFoundError if a store that was there is gone."""
        try:
            path = record_of(self.folder) / "run.db"
        except ValueError as error:
            if self._identity is not None:
                raise FileNotFoundError from error
            raise NoRun("waiting", f"no run in {self.folder} yet") from error
        try:
            self._store, self.record = StoreReader(path), path.parent
        except ValueError:
            if is_blank(path):  # its tables are not committed yet
                raise NoRun("waiting", f"the run in {self.folder} is just starting") from None
            raise

    def averages(self, window: int = WINDOW) -> Averages:
        """Return the averages over about `window` documents."""
        if window == self.series.averages.window:
            return self.series.averages
        if window not in self._averages:
            while len(self._averages) >= MOST_WINDOWS:
                del self._averages[next(iter(self._averages))]
            made = Averages(window)
            made.extend(self.series.columns())
            self._averages[window] = made
        return self._averages[window]

    @property
    def speller(self) -> Speller | None:
        """Decodes the run's tokens; None if the record has no tokenizer."""
        if not self._has_speller:
            self._speller, self._has_speller = speller(self.run.get("tokenizer")), True
        return self._speller

    @property
    def state(self) -> str:
        """`ended`, `running`, or `stopped`: the record has no end, and no process writes it."""
        if self.run.get("ended") is not None:
            return "ended"
        return "running" if self._is_locked else "stopped"
