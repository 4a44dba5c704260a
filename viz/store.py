"""The run store: one SQLite file, `run.db`, that one writer fills and any number of readers read meanwhile.

Everything else in the folder can be made again from it. Tables: `run` (one row), `steps` and `documents` (one row for
each step and rank), `text_samples`, `evaluations`, `events`; `viz/schema.py` declares them. Times are UNIX seconds.
Numbers that are not finite: NaN is kept as NULL and read back as NaN; infinities are kept as they are.

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

    a row of `documents`, if there are `token_ids`:
    source          which part of the data (`RedPajamaC4`); shard, row: where the document stands
    text_hash       SHA-256 of the whole text; document_bytes: UTF-8 bytes of the whole text
    token_ids       (T,) int, list or array; token_losses: (T-1,) float, nats, kept as float16 (`viz/blobs.py`)
    token_ranks     (T-1,) int, how many tokens were held more likely than the true one

    a row of `text_samples`, if there is a `prompt`, an `error`, an input text or an output text:
    prompt          what the model was given; reference: how the document goes on after it
    error           why there is no output; source, accuracy: as above
"""

import errno
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from viz import schema
from viz.blobs import decode_array, encode_array
from viz.filesystem import is_on_network
from viz.schema import Array, Row

__all__ = ["COLUMNS", "Columns", "StoreReader", "StoreWriter", "decode_array", "encode_array"]

Columns = dict[str, npt.NDArray[Any]]
COLUMNS = ("steps", *schema.STEP, "source")
"""The keys of `StoreReader.columns`, in the order of `metrics_history.json`."""


class StoreWriter:
    """The one writer of a store. Rows are queued; a thread commits them about every 0.3 seconds.

    Storage that fails (a full disk, a lost mount) surfaces as OSError at the next call, whichever it is; a row that
    breaks the schema, such as a second one for a (step, rank), as RuntimeError. After that nothing more is written.
    """

    COMMIT_SECONDS = 0.3
    COMMIT_ROWS = 1000
    QUEUE_ROWS = 10_000

    def __init__(self, path: Path, run: Mapping[str, Any], *, resume: bool = False) -> None:
        """Make the store (FileExistsError if it is there) or, with `resume`, open it (FileNotFoundError if it is not).

        `run`: columns of the table `run`; when resuming they replace what it holds, except `run_id` and `started`.
        Raises ValueError for a file that is no store or is of a newer version, OSError for one that can't be written.
        """
        self.path = path
        self._wake = threading.Condition()
        self._actions: list[Callable[[sqlite3.Connection], object]] = []
        self._hurry = self._closing = False
        self._failure: Exception | None = None
        if resume:
            StoreReader(path).close()  # refuses what is missing, foreign or newer
            kept = {name: value for name, value in run.items() if name not in ("run_id", "started")}
            row = schema.make_row("run", kept | {"ended": None, "outcome": None})
        else:
            row = schema.make_row("run", {"started": time.time(), "note": ""} | dict(run))
            if path.exists():
                advice = "there is a run already: continue it (resume_from=N) or move it away"
                raise FileExistsError(errno.EEXIST, advice, str(path))
        try:
            self._db = self._open(row, resume)
        except sqlite3.Error as error:
            raise self._surfaced(error) from error
        self._thread = threading.Thread(target=self._write, name="store-writer", daemon=True)
        self._thread.start()

    def _open(self, run: Row, resume: bool) -> sqlite3.Connection:
        # This thread opens it and later closes it; in between only the writer's thread touches it.
        db = sqlite3.connect(self.path, timeout=60, check_same_thread=False)
        db.execute("PRAGMA page_size = 8192")  # rows of `documents` are 1 to 2 kB: a third of 4 kB would stay empty
        # WAL shares memory between processes; on a network file system that may seem to work, and then corrupt.
        db.execute(f"PRAGMA journal_mode = {'DELETE' if is_on_network(self.path.parent) else 'WAL'}")
        # FULL: each commit is synced. In WAL mode the sync of the log is enough, for the next opener replays it.
        db.execute("PRAGMA synchronous = FULL")
        if resume:
            schema.update_run(db, run)
        else:
            db.executescript(f"BEGIN; {schema.create_statements()} COMMIT")
            schema.insert(db, "run", run)
        db.commit()
        return db

    def add(self, table: str, values: Mapping[str, Any]) -> None:
        """Queue one row. Returns at once unless 10,000 wait already."""
        self.add_rows([(table, schema.make_row(table, values))])

    def add_rows(self, rows: Iterable[tuple[str, Row]]) -> None:
        """Queue rows of `rows_of`; they are committed together."""
        self._put(*(partial(schema.insert, table=table, row=row) for table, row in rows))

    def update_run(self, **fields: Any) -> None:
        """Queue a change to columns of the row of `run`."""
        self._put(partial(schema.update_run, row=schema.make_row("run", fields)))

    def after_commit(self, function: Callable[[], object]) -> None:
        """Queue a call, made in the writer's thread once everything queued before it is on disk for good."""

        def commit_and_call(db: sqlite3.Connection) -> None:
            db.commit()
            function()

        self._put(commit_and_call)

    def flush(self) -> None:
        """Return when all rows so far are on disk for good."""
        done = threading.Event()
        self.after_commit(done.set)
        with self._wake:
            self._hurry = True
            self._wake.notify_all()
        while not done.wait(0.05):
            self._raise_failure()

    def rewind(self, step: int) -> None:
        """Delete the rows from `step` on, never events, in one transaction; returns when that is on disk."""

        def delete(db: sqlite3.Connection) -> None:
            db.commit()
            for table in schema.REWOUND:
                db.execute(f"DELETE FROM {table} WHERE step >= ?", (step,))

        self._put(delete)
        self.flush()

    def close(self) -> None:
        """Write what is queued and leave one file, unless a reader still holds the store open. Twice is once."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._thread.join()
        try:
            self._raise_failure()
            self._db.execute("PRAGMA busy_timeout = 1000")
            self._db.execute("PRAGMA journal_mode = DELETE")
        except (sqlite3.OperationalError, sqlite3.ProgrammingError):
            pass  # a reader holds it: the rows are safe in the log, which goes with the last reader; or closed before
        finally:
            self._db.close()

    def _put(self, *actions: Callable[[sqlite3.Connection], object]) -> None:
        with self._wake:
            self._raise_failure()
            if self._closing:
                raise RuntimeError(f"{self.path}: the store is closed")
            if len(self._actions) >= self.QUEUE_ROWS:
                self._wake.wait_for(lambda: len(self._actions) < self.QUEUE_ROWS or self._failure)
                self._raise_failure()
            self._actions += actions
            if len(self._actions) >= self.COMMIT_ROWS:
                self._wake.notify_all()  # below that it wakes by itself: to wake it costs the trainer more than a row

    def _write(self) -> None:
        try:
            while True:
                with self._wake:
                    self._wake.wait_for(self._is_due, self.COMMIT_SECONDS)
                    actions, self._actions, self._hurry, closing = self._actions, [], False, self._closing
                    self._wake.notify_all()
                for action in actions:
                    action(self._db)
                self._db.commit()
                if closing:
                    return
        except Exception as error:  # noqa: BLE001 - whatever it is, it is raised again in the trainer's thread
            with self._wake:
                self._failure = error
                self._wake.notify_all()

    def _is_due(self) -> bool:
        return self._hurry or self._closing or len(self._actions) >= self.COMMIT_ROWS

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._surfaced(self._failure) from self._failure

    def _surfaced(self, error: Exception) -> Exception:
        if isinstance(error, sqlite3.IntegrityError) or not isinstance(error, OSError | sqlite3.Error):
            return RuntimeError(f"{self.path}: a row that breaks the schema ({error})")
        full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        return OSError(errno.ENOSPC if full else errno.EIO, f"the store can't be written ({error})", str(self.path))


class StoreReader:
    """A store opened to be read, also while it is written. Holds no lock between calls. Close it, or use `with`."""

    def __init__(self, path: Path | str) -> None:
        """Raises FileNotFoundError, or ValueError for a file that is no run store or one of a newer version."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, "no run store there", str(path))
        # as_uri quotes what a URI would read as its own (`?`, `#`, `%`).
        self._db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=60, check_same_thread=False)
        self._db.row_factory = sqlite3.Row
        try:
            ours = self._value("PRAGMA application_id") == schema.APPLICATION_ID
            version = self._value("PRAGMA user_version")
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise ValueError(f"{path} can't be read as a run store: {error}") from error
        if not ours or version > schema.VERSION:
            self._db.close()
            newer = f"is of store version {version}, newer than the {schema.VERSION} known here: update this program"
            raise ValueError(f"{path} {newer if ours else 'is not a run store'}")

    def _value(self, sql: str) -> Any:
        return self._db.execute(sql).fetchone()[0]

    def __enter__(self) -> "StoreReader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    def run(self) -> Row:
        """The row of `run`; `config` and `versions` as objects."""
        row = dict(self._db.execute("SELECT * FROM run").fetchone())
        return row | {name: json.loads(row[name] or "{}") for name in ("config", "versions")}

    def columns(self, since_step: int = 0, below_step: int | None = None, rank: int = 0) -> Columns:
        """`COLUMNS` of one rank's steps, since_step <= step < below_step, in order: (N,) each.

        `steps` int64; `source` str objects ('' where unknown); the rest float64, NaN where a number is missing.
        """
        rows = self._db.execute(
            f"SELECT s.step, {', '.join(f's.{name}' for name in schema.STEP)}, d.source"
            " FROM steps s LEFT JOIN documents d USING (step, rank)"
            " WHERE s.rank = ? AND s.step >= ? AND s.step < ? ORDER BY s.step",
            (rank, since_step, 2**62 if below_step is None else below_step),
        )
        rows.row_factory = None
        columns = list(zip(*rows.fetchall(), strict=True)) or [()] * len(COLUMNS)
        same: dict[str, str] = {}  # one str object for each name, not one for each row
        return {
            "steps": np.array(columns[0], dtype=np.int64),
            **{
                name: np.array(values, dtype=np.float64)
                for name, values in zip(schema.STEP, columns[1:-1], strict=True)
            },
            "source": np.array([same.setdefault(name or "", name or "") for name in columns[-1]], dtype=object),
        }

    def documents(self, step: int) -> list[Row]:
        """The rows of `documents` of a step, by rank; arrays decoded."""
        rows = self._db.execute("SELECT * FROM documents WHERE step = ? ORDER BY rank", (step,)).fetchall()
        arrays = [name for name, kind in schema.DOCUMENT.items() if kind is Array]
        return [dict(row) | {name: decode_array(row[name]) for name in arrays if row[name] is not None} for row in rows]

    def text_samples(self, after_id: int = 0) -> list[Row]:
        """The rows of `text_samples` with a greater id, in the order in which they were recorded."""
        rows = self._db.execute("SELECT * FROM text_samples WHERE id > ? ORDER BY id", (after_id,))
        return [dict(row) for row in rows]

    def latest_text_sample(self, below_step: int) -> Row | None:
        """The newest generation before `below_step`: one that has a reference, if any has."""
        row = self._db.execute(
            "SELECT * FROM text_samples WHERE step < ?"
            " ORDER BY coalesce(reference, '') = '', step DESC, accuracy IS NULL, id DESC LIMIT 1",
            (below_step,),
        ).fetchone()
        return None if row is None else dict(row)

    def events(self, after_id: int = 0) -> list[Row]:
        """The rows of `events` with a greater id, in the order in which they happened."""
        rows = self._db.execute("SELECT * FROM events WHERE id > ? ORDER BY id", (after_id,))
        return [dict(row) for row in rows]
