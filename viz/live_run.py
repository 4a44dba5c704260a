"""One run, followed while it is written: its store opened once it is there, read on when asked, left when it goes."""

import sqlite3
import threading
import time
from contextlib import suppress
from pathlib import Path

from viz.averages import Averages
from viz.reader import StoreReader, is_blank
from viz.run_folder import is_locked, record_of
from viz.schema import Row
from viz.series import Series
from viz.smoothing import WINDOW
from viz.token_text import Speller, speller

FRESH_SECONDS = 0.25
"""What was read less long ago is not read again."""
MOST_WINDOWS = 4
"""Averages that are kept beside the usual ones, of other windows."""


class NoRun(Exception):
    """There is nothing to show. `state`: `waiting` (there was no run yet), `gone`, `unreadable`."""

    def __init__(self, state: str, why: str) -> None:
        super().__init__(why)
        self.state = state


class LiveRun:
    """The run in a folder, as of the last `refresh`. Use it under `lock`; nothing here writes to the folder."""

    def __init__(self, folder: Path) -> None:
        """`folder`: of the record, or what `--out` named; it need not be there yet."""
        self.lock = threading.RLock()
        self.folder = folder
        self.record = folder
        """Where `run.db` is, or was last."""
        self.edition = time.time_ns() // 1_000_000  # another server has others
        """Changes when steps may have been made again, or the run is another: what was read before is void."""
        self._store: StoreReader | None = None
        self._identity: tuple[int, int] | None = None
        self._read_at = -FRESH_SECONDS
        self._is_locked = False
        self._forget()

    def _forget(self) -> None:
        self.series = Series()
        self.run: Row = {}
        self._rewinds: int | None = None
        self._averages: dict[int, Averages] = {}
        self._speller: Speller | None = None
        self._has_speller = False
        self.edition += 1

    @property
    def store(self) -> StoreReader:
        assert self._store is not None, "refresh first"
        return self._store

    def refresh(self) -> None:
        """Read what is new. Raises NoRun where there is no run that can be read."""
        if self._store is not None and time.monotonic() - self._read_at < FRESH_SECONDS:
            return
        try:
            self._open()
            rewinds = self.store.count_rewinds()
            if self._rewinds not in (None, rewinds):
                self._forget()
            self._rewinds = rewinds
            self.run = self.store.run()
            first = self.series.size
            self.series.read(self.store)
            new = {name: values[first:] for name, values in self.series.columns().items()}
            for averages in self._averages.values():
                averages.extend(new)
        except FileNotFoundError as error:
            self._close()
            raise NoRun("gone", f"{self.record / 'run.db'} is gone") from error
        except (ValueError, KeyError, TypeError, OSError, sqlite3.Error) as error:
            self._close()
            raise NoRun("unreadable", str(error)) from error
        self._is_locked = is_locked(self.record)
        self._read_at = time.monotonic()

    def close(self) -> None:
        with self.lock:
            self._close()

    def _open(self) -> None:
        """Have the store open that is in the folder now: a new run may have taken the place of the old one."""
        try:
            path = record_of(self.folder) / "run.db"
            found = path.stat()
        except (ValueError, FileNotFoundError) as error:
            if self._identity is not None:
                raise FileNotFoundError from error
            raise NoRun("waiting", f"no run in {self.folder} yet") from error
        identity = (found.st_dev, found.st_ino)
        if self._store is not None and identity == self._identity:
            return
        self._close()
        if is_blank(path):  # its tables are on their way
            raise NoRun("waiting", f"the run in {self.folder} has only begun")
        self._store, self._identity, self.record = StoreReader(path), identity, path.parent

    def _close(self) -> None:
        if self._store is not None:
            with suppress(sqlite3.Error):
                self._store.close()
            self._forget()
        self._store = None

    def averages(self, window: int = WINDOW) -> Averages:
        """The averages over about `window` documents."""
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
        """What spells the run's tokens; None where the record holds no tokenizer."""
        if not self._has_speller:
            self._speller, self._has_speller = speller(self.run.get("tokenizer")), True
        return self._speller

    @property
    def state(self) -> str:
        """`ended`, `running`, or `stopped`: the record has no end, and nobody writes it any more."""
        if self.run.get("ended") is not None:
            return "ended"
        return "running" if self._is_locked else "stopped"
