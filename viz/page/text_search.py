"""Where a text occurs in what a run was trained on: an index of the server's own, made in a thread, never in the store.

Every three neighbouring characters of a document are in the index (SQLite's FTS5, tokenizer `trigram`), without their
places; a document that holds all those of the text asked for is then read. Letter case is ignored.
"""

import re
import sqlite3
import tempfile
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

from viz.record.reader import StoreReader
from viz.views.token_text import Speller, speller

AT_ONCE = 500  # documents that are added in one transaction
CONTEXT = 60  # characters around a hit


class TextSearch:
    """The documents of one store, as far as their tokens are kept; `follow` takes in what is new."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._lock = threading.Lock()  # of what follows
        self._edition: object = None
        self._thread: threading.Thread | None = None
        self._problem = ""
        self._stop = threading.Event()
        self.indexed_below = 0
        """Steps below this one can be found, where their tokens are kept."""
        self._documents = 0

    def close(self) -> None:
        with self._lock:
            self._stop.set()
        self.wait()
        if self._folder is not None:
            self._folder.cleanup()

    @property
    def _path(self) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="viz-search-")
        return Path(self._folder.name) / "texts.db"

    def follow(self, store: Path, edition: object, steps: int) -> None:
        """Take in the documents of a store below `steps` that are not here yet. Returns at once.

        `edition`: of the run; another one voids what was taken in.
        """
        with self._lock:
            if self._stop.is_set() or (self._thread is not None and self._thread.is_alive()):
                return
            if edition == self._edition and self.indexed_below >= steps:
                return
            if edition != self._edition:
                self.indexed_below = 0
            self._problem = ""
            self._thread = threading.Thread(
                target=self._take_in, args=(store, edition, steps), name="text-search", daemon=True
            )
            self._thread.start()

    def wait(self, seconds: float | None = None) -> None:
        """Return when all that `follow` was told of is in the index, or after so many seconds."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)

    def _take_in(self, store: Path, edition: object, steps: int) -> None:
        try:
            with StoreReader(store) as reader:
                found = speller(reader.run().get("tokenizer"))
                if found is None:
                    self._problem = "the record holds no tokenizer that could spell its documents"
                    return
                with closing(sqlite3.connect(self._path, isolation_level=None)) as database:
                    self._fill(database, reader, found, edition, steps)
        except (OSError, ValueError, sqlite3.Error) as error:
            self._problem = str(error)

    def _fill(
        self, database: sqlite3.Connection, reader: StoreReader, found: Speller, edition: object, steps: int
    ) -> None:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = OFF")  # of a file that nobody needs after us
        if edition != self._edition:
            database.execute("BEGIN")
            database.execute("DROP TABLE IF EXISTS texts")
            database.execute(
                "CREATE VIRTUAL TABLE texts USING fts5(text, tokenize='trigram', detail='none', columnsize=0)"
            )
            database.execute("COMMIT")
            self._edition, self._documents = edition, 0
        while self.indexed_below < steps and not self._stop.is_set():
            below = min(self.indexed_below + AT_ONCE, steps)
            rows = [(step, _indexed(found.text(ids))) for step, ids in reader.kept_ids(self.indexed_below, below)]
            database.execute("BEGIN")
            database.executemany("INSERT INTO texts (rowid, text) VALUES (?, ?)", rows)
            database.execute("COMMIT")
            self._documents += len(rows)
            self.indexed_below = below

    def find(self, text: str, edition: object, most: int = 50) -> dict[str, Any]:
        """`total` documents that hold a text, and of the first `most` of them the `step` and the words around the text.

        `indexed_below`: steps below this one were looked at, `searched`: so many of their documents are kept and were
        searched. `problem`: why nothing can be found, if so.
        """
        hits: list[dict[str, Any]] = []
        total = 0
        indexed_below, searched = (self.indexed_below, self._documents) if edition == self._edition else (0, 0)
        if not self._problem and indexed_below:
            text = _indexed(text)
            wanted = re.compile(re.escape(text), re.IGNORECASE)
            with closing(sqlite3.connect(f"{self._path.as_uri()}?mode=ro", uri=True)) as database:
                for step, found in self._candidates(database, text):
                    place = wanted.search(found)
                    if place is None:
                        continue
                    total += 1
                    if len(hits) < most:
                        hits.append({"step": step} | _around(found, *place.span()))
        found = {"total": total, "hits": hits, "indexed_below": indexed_below, "searched": searched}
        return found | {"problem": self._problem or None}

    @staticmethod
    def _candidates(database: sqlite3.Connection, text: str) -> list[tuple[int, str]] | sqlite3.Cursor:
        parts = {text[begin : begin + 3] for begin in range(len(text) - 2)}
        if not parts:  # too short for the index: all are read
            return database.execute("SELECT rowid, text FROM texts ORDER BY rowid")
        asked = " AND ".join('"' + part.replace('"', '""') + '"' for part in sorted(parts))
        return database.execute("SELECT rowid, text FROM texts WHERE texts MATCH ? ORDER BY rowid", (asked,))


def _indexed(text: str) -> str:
    """The text as the index takes it: SQLite would read no further than a NUL."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _around(text: str, begin: int, end: int) -> dict[str, str]:
    """`before`, `hit`, `after`: the hit in its surroundings."""
    return {
        "before": text[max(0, begin - CONTEXT) : begin],
        "hit": text[begin:end],
        "after": text[end : end + CONTEXT],
    }
