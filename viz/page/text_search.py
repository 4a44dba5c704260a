"""Search in the documents a run was trained on, with an index in a temporary folder that a thread builds.

The index (SQLite's FTS5, tokenizer `trigram`) has every three adjacent characters of a document, without positions. A
document that contains all those of the query is then searched for the text itself. Case is ignored.
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

BATCH = 500  # documents added in one transaction
CONTEXT = 60  # characters around a hit


class TextSearch:
    """The documents of one store whose tokens are kept; `follow` indexes new ones."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._lock = threading.Lock()  # guards what follows
        self._edition: object = None
        self._thread: threading.Thread | None = None
        self._problem = ""
        self._stop = threading.Event()
        self.indexed_below = 0
        """Steps below this one are indexed, if their tokens are kept."""
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
        """Start indexing the documents of a store below `steps`. Returns at once.

        `edition`: of the run; a new one discards the index.
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
                target=self._index, args=(store, edition, steps), name="text-search", daemon=True
            )
            self._thread.start()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until everything passed to `follow` is indexed, or for so many seconds."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)

    def _index(self, store: Path, edition: object, steps: int) -> None:
        try:
            with StoreReader(store) as reader:
                found = speller(reader.run().get("tokenizer"))
                if found is None:
                    self._problem = "the record has no tokenizer to decode its documents with"
                    return
                with closing(sqlite3.connect(self._path, isolation_level=None)) as database:
                    self._fill(database, reader, found, edition, steps)
        except (OSError, ValueError, sqlite3.Error) as error:
            self._problem = str(error)

    def _fill(
        self, database: sqlite3.Connection, reader: StoreReader, found: Speller, edition: object, steps: int
    ) -> None:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = OFF")  # a temporary file needs no durability
        if edition != self._edition:
            database.execute("BEGIN")
            database.execute("DROP TABLE IF EXISTS texts")
            database.execute(
                "CREATE VIRTUAL TABLE texts USING fts5(text, tokenize='trigram', detail='none', columnsize=0)"
            )
            database.execute("COMMIT")
            self._edition, self._documents = edition, 0
        while self.indexed_below < steps and not self._stop.is_set():
            below = min(self.indexed_below + BATCH, steps)
            rows = [(step, _indexed(found.text(ids))) for step, ids in reader.kept_ids(self.indexed_below, below)]
            database.execute("BEGIN")
            database.executemany("INSERT INTO texts (rowid, text) VALUES (?, ?)", rows)
            database.execute("COMMIT")
            self._documents += len(rows)
            self.indexed_below = below

    def find(self, text: str, edition: object, most: int = 50) -> dict[str, Any]:
        """Return the `total` of documents that contain a text, and for the first `most` the `step` and the context.

        `indexed_below`: later steps are not indexed yet. `searched`: number of documents searched. `problem`: why
        nothing can be found, or None.
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
        if not parts:  # too short for the index: search all documents
            return database.execute("SELECT rowid, text FROM texts ORDER BY rowid")
        asked = " AND ".join('"' + part.replace('"', '""') + '"' for part in sorted(parts))
        return database.execute("SELECT rowid, text FROM texts WHERE texts MATCH ? ORDER BY rowid", (asked,))


def _indexed(text: str) -> str:
    """Replace NUL, at which SQLite would stop reading."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _around(text: str, begin: int, end: int) -> dict[str, str]:
    """Return `before`, `hit` and `after`: the hit and its context."""
    return {
        "before": text[max(0, begin - CONTEXT) : begin],
        "hit": text[begin:end],
        "after": text[end : end + CONTEXT],
    }
