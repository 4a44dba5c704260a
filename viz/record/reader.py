"""Reads the run store: for the drawing process, the server, and anyone who has the file.

`viz/record/schema.py` describes the tables.
"""

import errno
import json
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from viz.record import schema
from viz.record.schema import Array, Row, decode_array

Columns = dict[str, npt.NDArray[Any]]
COLUMNS = ("steps", *schema.STEP, "source")
"""The keys of `StoreReader.columns`, in the order of `metrics_history.json`."""
PATIENCE = 20.0  # seconds that a read waits for a lock: less than the drawing process may take for an answer


def is_blank(path: Path) -> bool:
    """Whether a file contains no table: creating the store failed or was killed."""
    try:
        db = StoreReader._open(path)
    except sqlite3.DatabaseError:
        return False
    tables: int = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    db.close()
    return tables == 0


class StoreReader:
    """A store opened for reading, possibly while it is written. Keeps no lock between calls. Use `with`, or `close`."""

    def __init__(self, path: Path | str) -> None:
        """Raises FileNotFoundError, or ValueError for a file that is not a run store or has a newer version."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, "there is no run store", str(path))
        try:
            self._db = self._open(path)
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path} can't be read as a run store: {error}") from error
        self._db.row_factory = sqlite3.Row
        ours = self._value("PRAGMA application_id") == schema.APPLICATION_ID
        self.version: int = self._value("PRAGMA user_version")
        """Schema version of the store: `schema.VERSION` or older."""
        self.is_current: bool = self.version == schema.VERSION
        """Whether a run can be resumed with it."""
        if not ours or self.version > schema.VERSION:
            self._db.close()
            newer = f"has store version {self.version}, newer than the supported {schema.VERSION}: update this program"
            raise ValueError(f"{path} {newer if ours else 'is not a run store'}")
        self._steps_have = {row["name"] for row in self._db.execute("PRAGMA table_info(steps)")}

    @staticmethod
    def _open(path: Path, mode: str = "ro") -> sqlite3.Connection:
        # as_uri quotes characters that have a meaning in a URI (`?`, `#`, `%`).
        address = f"{path.absolute().as_uri()}?mode={mode}"
        db = sqlite3.connect(address, uri=True, timeout=PATIENCE, check_same_thread=False)
        try:
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.DatabaseError as error:
            db.close()
            if getattr(error, "sqlite_errorcode", 0) != sqlite3.SQLITE_READONLY_ROLLBACK or mode == "rw":
                raise
            # A writer was killed in the middle of a commit. Only a connection that may write can roll back the part
            # that is in the file, and no reader can continue before, so this one does it.
            StoreReader._open(path, "rw").close()
            return StoreReader._open(path, "ro")
        return db

    def _value(self, sql: str) -> Any:
        return self._db.execute(sql).fetchone()[0]

    def __enter__(self) -> "StoreReader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    def run(self) -> Row:
        """Return the row of `run`; `config`, `recipe`, `flops` and `versions` as objects, empty if missing."""
        found = self._db.execute("SELECT * FROM run").fetchone()
        if found is None:
            raise ValueError("the store is damaged: its table `run` is empty")
        row = dict(found)
        objects = (name for name, kind in schema.TABLES["run"].items() if kind is dict)
        return row | {name: json.loads(row.get(name) or "{}") for name in objects}

    def columns(self, since_step: int = 0, below_step: int | None = None, rank: int = 0) -> Columns:
        """Return `COLUMNS` of one rank's steps, since_step <= step < below_step, in order: (N,) each.

        `steps` int64; `source` str objects ('' if unknown); the rest float64, NaN if missing.
        """
        rows = self._db.execute(
            f"SELECT s.step, {', '.join(map(self._step_column, schema.STEP))}, d.source"
            " FROM steps s LEFT JOIN documents d USING (step, rank)"
            " WHERE s.rank = ? AND s.step >= ? AND s.step < ? ORDER BY s.step",
            (rank, since_step, 2**62 if below_step is None else below_step),
        )
        rows.row_factory = None
        columns = list(zip(*rows.fetchall(), strict=True)) or [()] * len(COLUMNS)
        same: dict[str, str] = {}  # one str object per name, not per row
        return {
            "steps": np.array(columns[0], dtype=np.int64),
            **{
                name: np.array(values, dtype=np.float64)
                for name, values in zip(schema.STEP, columns[1:-1], strict=True)
            },
            "source": np.array([same.setdefault(name or "", name or "") for name in columns[-1]], dtype=object),
        }

    def _step_column(self, name: str) -> str:
        """A column of `steps` in SQL; NULL if the store's version does not have it."""
        return f"s.{name}" if name in self._steps_have else "NULL"

    def documents_trained(self) -> int:
        """Return the last step + 1; 0 before the first."""
        return int(self._value("SELECT coalesce(max(step), -1) + 1 FROM steps"))

    def documents(self, step: int) -> list[Row]:
        """Return the rows of `documents` of a step, by rank; arrays decoded, None if not kept."""
        rows = self._db.execute("SELECT * FROM documents WHERE step = ? ORDER BY rank", (step,)).fetchall()
        arrays = [name for name, kind in schema.DOCUMENT.items() if kind is Array]
        return [dict(row) | {name: decode_array(row[name]) for name in arrays if row[name] is not None} for row in rows]

    def token_losses(self, first_step: int, below_step: int, rank: int = 0) -> list[npt.NDArray[np.float16]]:
        """Return the losses of each document's tokens, first_step <= step < below_step: (T-1,) float16 each, nats.

        Documents whose losses are not kept are skipped.
        """
        rows = self._db.execute(
            "SELECT token_losses FROM documents WHERE rank = ? AND step >= ? AND step < ? ORDER BY step",
            (rank, first_step, below_step),
        )
        return [decode_array(blob) for (blob,) in rows if blob is not None]

    def token_ids(self, step: int, rank: int = 0) -> list[int] | None:
        """Return the (T,) ids of a step's document as the model read them; None if not kept."""
        row = self._db.execute("SELECT token_ids FROM documents WHERE step = ? AND rank = ?", (step, rank)).fetchone()
        ids: list[int] | None = None if row is None or row[0] is None else decode_array(row[0]).tolist()
        return ids

    def kept_ids(self, first_step: int, below_step: int, rank: int = 0) -> Iterator[tuple[int, list[int]]]:
        """Return (step, ids) of the documents whose tokens are kept, first_step <= step < below_step, in order."""
        rows = self._db.execute(
            "SELECT step, token_ids FROM documents"
            " WHERE rank = ? AND step >= ? AND step < ? AND token_ids IS NOT NULL ORDER BY step",
            (rank, first_step, below_step),
        )
        return ((step, decode_array(blob).tolist()) for step, blob in rows.fetchall())

    def text_hashes(self, rank: int = 0) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bytes_]]:
        """Return the steps of one rank's documents in order, (N,) int64, and the SHA-256 of each text, (N,) S32."""
        rows = self._db.execute(
            "SELECT step, text_hash FROM documents WHERE rank = ? AND text_hash IS NOT NULL ORDER BY step", (rank,)
        )
        rows.row_factory = None
        steps, hashes = list(zip(*rows.fetchall(), strict=True)) or [(), ()]
        return np.array(steps, dtype=np.int64), np.array(hashes, dtype="S32")

    def text_samples(self, after_id: int = 0) -> list[Row]:
        """Return the rows of `text_samples` with a greater id, in the order of recording."""
        rows = self._db.execute("SELECT * FROM text_samples WHERE id > ? ORDER BY id", (after_id,))
        return [dict(row) for row in rows]

    def text_samples_at(self, step: int) -> list[Row]:
        """Return the rows of `text_samples` of a step, in the order of recording."""
        rows = self._db.execute("SELECT * FROM text_samples WHERE step = ? ORDER BY id", (step,))
        return [dict(row) for row in rows]

    def latest_text_sample(self, below_step: int) -> Row | None:
        """Return the newest generation before `below_step`, preferably one with a reference."""
        for has_reference in ("coalesce(reference, '') != ''", "1"):  # two queries, so that the index on step is used
            row = self._db.execute(
                f"SELECT * FROM text_samples WHERE step < ? AND {has_reference}"
                " ORDER BY step DESC, accuracy IS NULL, id DESC LIMIT 1",
                (below_step,),
            ).fetchone()
            if row is not None:
                return dict(row)
        return None

    def asked_again(self, below_step: int) -> list[tuple[int, int]]:
        """Return (step, id) of the generations before `below_step` for the repeated prompt, in order.

        A repeated prompt has no reference: the user's first `--prompt`, or the beginning of the run's first document,
        whose own generation at step 0 is then the first.
        """
        newest = self._db.execute(
            "SELECT prompt FROM text_samples WHERE step < ? AND reference IS NULL ORDER BY step DESC, id LIMIT 1",
            (below_step,),
        ).fetchone()
        if newest is None:
            return []
        rows = self._db.execute(
            "SELECT step, min(id) FROM text_samples"
            " WHERE step < ? AND prompt = ? AND (reference IS NULL OR step = 0) GROUP BY step ORDER BY step",
            (below_step, newest["prompt"]),
        )
        return [(step, number) for step, number in rows]

    def text_samples_of(self, ids: Sequence[int]) -> list[Row]:
        """Return the rows of `text_samples` with these ids, in the order of recording."""
        places = ", ".join("?" * len(ids))
        rows = self._db.execute(f"SELECT * FROM text_samples WHERE id IN ({places}) ORDER BY id", tuple(ids))
        return [dict(row) for row in rows]

    def evaluations(self, below_step: int) -> list[Row]:
        """Return the rows of `evaluations` before `below_step` for whole splits, by split and step."""
        rows = self._db.execute("SELECT * FROM evaluations WHERE step < ? ORDER BY split, step", (below_step,))
        return [row for row in map(dict, rows) if not row.get("source")]  # version 1 had no sources

    def samples_between(self, first_step: int, below_step: int, prompt: str | None = None) -> list[tuple[int, int]]:
        """Return (step, id) of generations, first_step <= step < below_step, in order.

        `prompt`: of this repeated prompt (see `asked_again`); None: of those that continue a document.
        """
        which = "reference IS NOT NULL" if prompt is None else "prompt = ? AND (reference IS NULL OR step = 0)"
        rows = self._db.execute(
            f"SELECT step, id FROM text_samples WHERE {which} AND step >= ? AND step < ? ORDER BY step, id",
            (*([] if prompt is None else [prompt]), first_step, below_step),
        )
        return [(step, number) for step, number in rows]

    def prompts(self) -> list[str]:
        """Return the prompts that do not come from the step's document, in the order of first use."""
        rows = self._db.execute(
            "SELECT prompt FROM text_samples WHERE reference IS NULL AND prompt IS NOT NULL"
            " GROUP BY prompt ORDER BY min(id)"
        )
        return [prompt for (prompt,) in rows]

    def probes(self) -> list[Row]:
        """Return the rows of `probes`, by document and step, arrays decoded. Stores before version 5 have none."""
        if not self._value("SELECT count(*) FROM sqlite_master WHERE name = 'probes'"):
            return []
        rows = self._db.execute("SELECT * FROM probes ORDER BY document, step").fetchall()
        return [dict(row) | {"token_losses": decode_array(row["token_losses"])} for row in rows]

    def count_rewinds(self) -> int:
        """Return how often the run was resumed or rolled back: each time, steps may have been repeated."""
        return int(self._value("SELECT count(*) FROM events WHERE kind IN ('resume', 'roll-back')"))

    def steps_of_events(self, below_step: int) -> dict[str, list[int]]:
        """Return kind -> the steps before `below_step` of such events, in order, one entry per event.

        The step of a checkpoint is the number of documents before it, so one at `below_step` counts.
        """
        rows = self._db.execute(
            "SELECT kind, step FROM events WHERE step < ? OR (step = ? AND kind = 'checkpoint') ORDER BY step",
            (below_step, below_step),
        )
        found: dict[str, list[int]] = {}
        for kind, step in rows:
            found.setdefault(kind, []).append(step)
        return found

    def judged(self) -> dict[int, list[str]]:
        """Return step -> the details of the spike detector's events of its current document, in order of steps.

        Events are never deleted, so after a resume or rollback those of later steps belong to earlier documents.
        """
        rewinds = ("resume", "roll-back")
        kinds = (*schema.SPIKES, *rewinds)
        places = ", ".join("?" * len(kinds))
        found: dict[int, list[str]] = {}
        rows = self._db.execute(f"SELECT kind, step, detail FROM events WHERE kind IN ({places}) ORDER BY id", kinds)
        for kind, step, detail in rows:
            if kind in rewinds:
                found = {earlier: details for earlier, details in found.items() if earlier < step}
            else:
                found.setdefault(step, []).append(detail)
        return dict(sorted(found.items()))

    def newest_events(self, most: int, kind: str | None = None) -> list[Row]:
        """Return at most `most` rows of `events`, of one kind or all, newest first."""
        which, values = ("", ()) if kind is None else ("WHERE kind = ?", (kind,))
        rows = self._db.execute(f"SELECT * FROM events {which} ORDER BY id DESC LIMIT ?", (*values, most))
        return [dict(row) for row in rows]

    def events(self, after_id: int = 0) -> list[Row]:
        """Return the rows of `events` with a greater id, in the order of recording."""
        rows = self._db.execute("SELECT * FROM events WHERE id > ? ORDER BY id", (after_id,))
        return [dict(row) for row in rows]
