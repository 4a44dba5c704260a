"""Reads the run store, for the drawing process, a server or anyone who has the file.

`viz/record/writer.py` documents what is in it.
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
PATIENCE = 20.0  # seconds a read waits for a lock: less than the drawing process may take for an answer


def is_blank(path: Path) -> bool:
    """Whether a file is what is left of a store whose making failed or was killed: it holds no table yet."""
    try:
        db = StoreReader._open(path)
    except sqlite3.DatabaseError:
        return False
    tables: int = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    db.close()
    return tables == 0


class StoreReader:
    """A store opened to be read, also while it is written. Holds no lock between calls. Close it, or use `with`."""

    def __init__(self, path: Path | str) -> None:
        """Raises FileNotFoundError, or ValueError for a file that is no run store or one of a newer version."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, "no run store there", str(path))
        try:
            self._db = self._open(path)
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path} can't be read as a run store: {error}") from error
        self._db.row_factory = sqlite3.Row
        ours = self._value("PRAGMA application_id") == schema.APPLICATION_ID
        self.version: int = self._value("PRAGMA user_version")
        """Of the store: `schema.VERSION`, or an older one, which holds less."""
        if not ours or self.version > schema.VERSION:
            self._db.close()
            known = f"newer than the {schema.VERSION} known here: update this program"
            newer = f"is of store version {self.version}, {known}"
            raise ValueError(f"{path} {newer if ours else 'is not a run store'}")
        self._steps_have = {row["name"] for row in self._db.execute("PRAGMA table_info(steps)")}

    @staticmethod
    def _open(path: Path, mode: str = "ro") -> sqlite3.Connection:
        # as_uri quotes what a URI would read as its own (`?`, `#`, `%`).
        address = f"{path.absolute().as_uri()}?mode={mode}"
        db = sqlite3.connect(address, uri=True, timeout=PATIENCE, check_same_thread=False)
        try:
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.DatabaseError as error:
            db.close()
            if getattr(error, "sqlite_errorcode", 0) != sqlite3.SQLITE_READONLY_ROLLBACK or mode == "rw":
                raise
            # A writer was killed in the middle of a commit. Only one who may write can undo the half of it that is
            # in the file; every reader has to wait for that, so this one does it.
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
        """The row of `run`; `config`, `recipe`, `flops` and `versions` as objects, empty where the store has none."""
        found = self._db.execute("SELECT * FROM run").fetchone()
        if found is None:
            raise ValueError("the store has no row in its table `run`: it is damaged")
        row = dict(found)
        objects = (name for name, kind in schema.TABLES["run"].items() if kind is dict)
        return row | {name: json.loads(row.get(name) or "{}") for name in objects}

    def columns(self, since_step: int = 0, below_step: int | None = None, rank: int = 0) -> Columns:
        """`COLUMNS` of one rank's steps, since_step <= step < below_step, in order: (N,) each.

        `steps` int64; `source` str objects ('' where unknown); the rest float64, NaN where a number is missing.
        """
        rows = self._db.execute(
            f"SELECT s.step, {', '.join(map(self._step_column, schema.STEP))}, d.source"
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

    def _step_column(self, name: str) -> str:
        """A column of `steps` in SQL; NULL where a store of an older version has none."""
        return f"s.{name}" if name in self._steps_have else "NULL"

    def documents_trained(self) -> int:
        """The last step + 1; 0 before the first."""
        return int(self._value("SELECT coalesce(max(step), -1) + 1 FROM steps"))

    def documents(self, step: int) -> list[Row]:
        """The rows of `documents` of a step, by rank; arrays decoded, None where they are not kept."""
        rows = self._db.execute("SELECT * FROM documents WHERE step = ? ORDER BY rank", (step,)).fetchall()
        arrays = [name for name, kind in schema.DOCUMENT.items() if kind is Array]
        return [dict(row) | {name: decode_array(row[name]) for name in arrays if row[name] is not None} for row in rows]

    def token_losses(self, first_step: int, below_step: int, rank: int = 0) -> list[npt.NDArray[np.float16]]:
        """The losses of each document's tokens, first_step <= step < below_step: (T-1,) float16 each, nats.

        Documents whose losses are not kept are left out.
        """
        rows = self._db.execute(
            "SELECT token_losses FROM documents WHERE rank = ? AND step >= ? AND step < ? ORDER BY step",
            (rank, first_step, below_step),
        )
        return [decode_array(blob) for (blob,) in rows if blob is not None]

    def token_ids(self, step: int, rank: int = 0) -> list[int] | None:
        """The (T,) ids that the model read of a step's document; None where they are not kept."""
        row = self._db.execute("SELECT token_ids FROM documents WHERE step = ? AND rank = ?", (step, rank)).fetchone()
        ids: list[int] | None = None if row is None or row[0] is None else decode_array(row[0]).tolist()
        return ids

    def kept_ids(self, first_step: int, below_step: int, rank: int = 0) -> Iterator[tuple[int, list[int]]]:
        """(step, ids) of the documents, first_step <= step < below_step, in order, whose tokens are kept."""
        rows = self._db.execute(
            "SELECT step, token_ids FROM documents"
            " WHERE rank = ? AND step >= ? AND step < ? AND token_ids IS NOT NULL ORDER BY step",
            (rank, first_step, below_step),
        )
        return ((step, decode_array(blob).tolist()) for step, blob in rows.fetchall())

    def text_hashes(self, rank: int = 0) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bytes_]]:
        """Steps of one rank's documents in order, (N,) int64, and the SHA-256 of each text, (N,) of 32 bytes."""
        rows = self._db.execute(
            "SELECT step, text_hash FROM documents WHERE rank = ? AND text_hash IS NOT NULL ORDER BY step", (rank,)
        )
        rows.row_factory = None
        steps, hashes = list(zip(*rows.fetchall(), strict=True)) or [(), ()]
        return np.array(steps, dtype=np.int64), np.array(hashes, dtype="S32")

    def text_samples(self, after_id: int = 0) -> list[Row]:
        """The rows of `text_samples` with a greater id, in the order in which they were recorded."""
        rows = self._db.execute("SELECT * FROM text_samples WHERE id > ? ORDER BY id", (after_id,))
        return [dict(row) for row in rows]

    def text_samples_at(self, step: int) -> list[Row]:
        """The rows of `text_samples` of a step, in the order in which they were recorded."""
        rows = self._db.execute("SELECT * FROM text_samples WHERE step = ? ORDER BY id", (step,))
        return [dict(row) for row in rows]

    def latest_text_sample(self, below_step: int) -> Row | None:
        """The newest generation before `below_step`: one that has a reference, if any has."""
        for has_reference in ("coalesce(reference, '') != ''", "1"):  # apart, so that the index on step can serve
            row = self._db.execute(
                f"SELECT * FROM text_samples WHERE step < ? AND {has_reference}"
                " ORDER BY step DESC, accuracy IS NULL, id DESC LIMIT 1",
                (below_step,),
            ).fetchone()
            if row is not None:
                return dict(row)
        return None

    def asked_again(self, below_step: int) -> list[tuple[int, int]]:
        """(step, id) of what the model wrote before `below_step` to the prompt that it was asked last, in order.

        Asked are prompts without a reference: the user's first `--prompt`, or the beginning of the run's first
        document, whose own generation then comes first.
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
        """The rows of `text_samples` with these ids, in the order in which they were recorded."""
        places = ", ".join("?" * len(ids))
        rows = self._db.execute(f"SELECT * FROM text_samples WHERE id IN ({places}) ORDER BY id", tuple(ids))
        return [dict(row) for row in rows]

    def evaluations(self, below_step: int) -> list[Row]:
        """The rows of `evaluations` before `below_step` that are of a whole split, by split and step."""
        rows = self._db.execute("SELECT * FROM evaluations WHERE step < ? ORDER BY split, step", (below_step,))
        return [row for row in map(dict, rows) if not row.get("source")]  # version 1 had no sources

    def samples_between(self, first_step: int, below_step: int, prompt: str | None = None) -> list[tuple[int, int]]:
        """(step, id) of generations, first_step <= step < below_step, in order: of those that go on from a document,
        or of those to a prompt that is asked again and again (by `asked_again`, with its first at step 0)."""
        which = "reference IS NOT NULL" if prompt is None else "prompt = ? AND (reference IS NULL OR step = 0)"
        rows = self._db.execute(
            f"SELECT step, id FROM text_samples WHERE {which} AND step >= ? AND step < ? ORDER BY step, id",
            (*([] if prompt is None else [prompt]), first_step, below_step),
        )
        return [(step, number) for step, number in rows]

    def prompts(self) -> list[str]:
        """The prompts that were asked without a document, in the order of their first time."""
        rows = self._db.execute(
            "SELECT prompt FROM text_samples WHERE reference IS NULL AND prompt IS NOT NULL"
            " GROUP BY prompt ORDER BY min(id)"
        )
        return [prompt for (prompt,) in rows]

    def probes(self) -> list[Row]:
        """The rows of `probes`, by document and step; arrays decoded. Before version 5 a store had none."""
        if not self._value("SELECT count(*) FROM sqlite_master WHERE name = 'probes'"):
            return []
        rows = self._db.execute("SELECT * FROM probes ORDER BY document, step").fetchall()
        return [dict(row) | {"token_losses": decode_array(row["token_losses"])} for row in rows]

    def count_rewinds(self) -> int:
        """How often the run went back or was gone on with: steps may have been made again each time."""
        return int(self._value("SELECT count(*) FROM events WHERE kind IN ('resume', 'roll-back')"))

    def steps_of_events(self, below_step: int) -> dict[str, list[int]]:
        """Kind -> the steps before `below_step` at which such an event has happened, in order, as often as it did.

        A checkpoint is an event of the step that comes next: that of `below_step` finished documents counts.
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
        """Step -> what the judge of stability said of the document that is there now, in order of steps.

        Events are never deleted; where a run went back, what was said of later steps is of documents of before.
        """
        went_back = ("resume", "roll-back")
        kinds = (*schema.SPIKES, *went_back)
        places = ", ".join("?" * len(kinds))
        found: dict[int, list[str]] = {}
        rows = self._db.execute(f"SELECT kind, step, detail FROM events WHERE kind IN ({places}) ORDER BY id", kinds)
        for kind, step, detail in rows:
            if kind in went_back:
                found = {earlier: said for earlier, said in found.items() if earlier < step}
            else:
                found.setdefault(step, []).append(detail)
        return dict(sorted(found.items()))

    def newest_events(self, most: int, kind: str | None = None) -> list[Row]:
        """At most `most` rows of `events`, of one kind or of all, the newest first."""
        which, values = ("", ()) if kind is None else ("WHERE kind = ?", (kind,))
        rows = self._db.execute(f"SELECT * FROM events {which} ORDER BY id DESC LIMIT ?", (*values, most))
        return [dict(row) for row in rows]

    def events(self, after_id: int = 0) -> list[Row]:
        """The rows of `events` with a greater id, in the order in which they happened."""
        rows = self._db.execute("SELECT * FROM events WHERE id > ? ORDER BY id", (after_id,))
        return [dict(row) for row in rows]
