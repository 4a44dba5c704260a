"""The run store's schema: one SQLite file, `run.db`, with one writer and any number of concurrent readers.

Tables: `run` (one row), `steps` and `documents` (one row per step and rank), `text_samples`, `evaluations` (one row
per split, whose `source` is '', and one per source in it), `probes` (one row per re-measurement of a document),
`events`. Times are UNIX seconds. NaN is stored as NULL and read as NaN; infinities are stored as they are. A step whose
logits were not finite has such a loss and accuracy, and NULL as `token_ranks`.

The keys of `metrics` in `TrainingVisualizer.update(metrics, input_text, output_text)`. Every key except `step` may be
missing or None (stored as NULL); unknown keys are refused. Arrays are encoded later, by another thread: don't change
them.

    step            int, 0-based index of the document; rank: int, 0 with a single process

    a row of `steps`, if there is a `loss`:
    loss            mean over the document's predictions, nats per token, measured before the update
    accuracy        share of predictions whose most likely token is the true one, 0...1
    throughput      predictions / wall seconds since the previous step, including waits
    learning_rate   base rate of the step
    gradient_norm   L2 norm before clipping
    tokens          number of predictions; bytes: UTF-8 bytes of the text that they spell
    seconds         wall seconds since the previous step; seconds_waited: of these, seconds spent waiting for data
    unigram_entropy entropy of the frequencies of all tokens so far, nats per token

    a row of `documents`, if there are `token_ids`:
    source          part of the data (`RedPajamaC4`); shard, row: where the document is
    text_hash       SHA-256 of the whole text; document_bytes: UTF-8 bytes of the whole text
    token_ids       (T,) int, list or array; token_losses: (T-1,) float, nats, stored as float16
    token_ranks     (T-1,) int, how many tokens the model ranked above the true one
                    (all three become NULL once `viz/stats/retention.py` no longer keeps them)

    a row of `text_samples`, if there is a `prompt`, an `error`, an input text or an output text:
    prompt          input of the model; reference: how the document really continues
    error           why there is no output; source, accuracy: as above
"""

import json
import operator
import zlib
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

VERSION = 5  # PRAGMA user_version: raise it with every change that an older reader would misread
APPLICATION_ID = 0x534C504A  # PRAGMA application_id: distinguishes a run store from other SQLite files

Array = np.ndarray[Any, Any]  # as the type of a column: stored as a blob of `encode_array`
Row = dict[str, Any]
Statement = tuple[str, tuple[Any, ...]]  # SQL and its values

STEP = {
    "loss": float, "accuracy": float, "throughput": float, "learning_rate": float, "gradient_norm": float,
    "tokens": int, "bytes": int, "seconds": float, "seconds_waited": float,
    "unigram_entropy": float,
}  # fmt: skip
DOCUMENT = {
    "source": str, "shard": str, "row": int, "text_hash": bytes, "document_bytes": int,
    "token_ids": Array, "token_losses": Array, "token_ranks": Array,
}  # fmt: skip
SAMPLE = {"prompt": str, "reference": str, "source": str, "error": str, "accuracy": float}
KEY = {"step": int, "rank": int}
TABLES: dict[str, dict[str, Any]] = {
    "run": {
        "run_id": str, "config": dict, "recipe": dict, "flops": dict, "versions": dict, "git_commit": str,
        "device": str, "dtype": str, "model": str, "parameters": int, "source": str, "revision": str, "note": str,
        "tokenizer": bytes, "tokenizer_hash": str, "vocab_size": int, "started": float, "ended": float, "outcome": str,
    },
    "steps": KEY | STEP,
    "documents": KEY | DOCUMENT,
    "text_samples": KEY | {"input": str, "output": str} | SAMPLE,
    "evaluations": {
        "step": int, "split": str, "source": str, "loss": float, "accuracy": float, "bits_per_byte": float,
        "documents": int, "tokens": int, "bytes": int, "seconds": float,
    },
    "probes": {"step": int, "document": int, "loss": float, "accuracy": float, "token_losses": Array},
    "events": {"time": float, "step": int, "kind": str, "detail": str},
}  # fmt: skip
SPIKES = ("spike", "skipped update")
"""Kinds of events of the spike detector."""
REWOUND = ("steps", "documents", "text_samples", "evaluations", "probes")
_CONSTRAINTS = {
    # Rows of `steps` are small: stored in the tree of the key, they need no separate index.
    "steps": "PRIMARY KEY (step, rank)) WITHOUT ROWID",
    "documents": "PRIMARY KEY (step, rank))",
    "evaluations": "PRIMARY KEY (step, split, source)) WITHOUT ROWID",
    "probes": "PRIMARY KEY (step, document))",
    "text_samples": "id INTEGER PRIMARY KEY); CREATE INDEX text_samples_step ON text_samples (step)",
    "events": "id INTEGER PRIMARY KEY)",
    "run": "id INTEGER PRIMARY KEY CHECK (id = 1))",
}
_SQL = {int: "INTEGER", float: "REAL", str: "TEXT", bytes: "BLOB", dict: "TEXT", Array: "BLOB"}
UPDATE_KEYS = frozenset(KEY | STEP | DOCUMENT | SAMPLE)


def _text(value: object) -> str:
    """Replace lone surrogates, which UTF-8 can't encode, by `?`."""
    return str(value).encode("utf-8", "replace").decode("utf-8")


_CONVERT: dict[Any, Callable[[Any], Any]] = {
    int: operator.index,
    float: float,
    str: _text,
    bytes: bytes,
    dict: partial(json.dumps, default=str),
    Array: lambda values: values,  # encoded in the writer's thread
}


def make_row(table: str, values: Mapping[str, Any]) -> Row:
    """Convert values to the types of the table's columns. Raises ValueError for unknown columns and invalid values."""
    kinds, row = TABLES[table], {}
    for name, value in values.items():
        if name not in kinds:
            raise ValueError(f"unknown column {name!r} of {table}; known: {', '.join(kinds)}")
        try:
            row[name] = None if value is None else _CONVERT[kinds[name]](value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name!r} of {table}: {error}") from error
    return row


def rows_of(metrics: Mapping[str, Any], input_text: str = "", output_text: str = "") -> list[tuple[str, Row]]:
    """Return (table, row) for each row that an `update` adds (see the module's docstring). Raises ValueError."""
    unknown = metrics.keys() - UPDATE_KEYS
    if unknown or metrics.get("step") is None:
        problem = f"unknown: {', '.join(sorted(unknown))}" if unknown else "no step"
        raise ValueError(f"metrics: {problem}; known keys: {', '.join(sorted(UPDATE_KEYS))}")
    key = {"step": metrics["step"], "rank": metrics.get("rank") or 0}
    rows = []
    if metrics.get("loss") is not None:
        rows.append(("steps", make_row("steps", key | {k: v for k, v in metrics.items() if k in STEP})))
    if metrics.get("token_ids") is not None:
        rows.append(("documents", make_row("documents", key | {k: v for k, v in metrics.items() if k in DOCUMENT})))
    if input_text or output_text or metrics.get("prompt") is not None or metrics.get("error") is not None:
        sample = {k: v for k, v in metrics.items() if k in SAMPLE}
        rows.append(
            ("text_samples", make_row("text_samples", key | sample | {"input": input_text, "output": output_text}))
        )
    if not rows:
        raise ValueError(f"metrics of step {metrics['step']}: nothing to record: no loss, no token_ids and no text")
    return rows


def create_statements() -> list[Statement]:
    """Return the SQL that creates an empty store."""
    made = [sql for table in TABLES for sql in _create_table(table)]
    made += [f"PRAGMA application_id = {APPLICATION_ID}", f"PRAGMA user_version = {VERSION}"]
    return [(sql, ()) for sql in made]


def _create_table(table: str) -> list[str]:
    columns = ", ".join(f"{name} {_SQL[kind]}" for name, kind in TABLES[table].items())
    return f"CREATE TABLE {table} ({columns}, {_CONSTRAINTS[table]}".split("; ")


def insert_statement(table: str, row: Row) -> Statement:
    """Return the SQL that inserts a row of `make_row`, and its values, arrays encoded. Raises ValueError."""
    kinds = TABLES[table]
    values = tuple(encode_array(v) if kinds[k] is Array and v is not None else v for k, v in row.items())
    return _insert_sql(table, tuple(row)), values


@cache
def _insert_sql(table: str, columns: tuple[str, ...]) -> str:
    # Cached, so that rows share one string: hundreds of thousands of them may wait in memory.
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"


def update_statement(row: Row) -> Statement:
    """Return the SQL that replaces columns of the single row of `run`."""
    return f"UPDATE run SET {', '.join(f'{name} = ?' for name in row)}", tuple(row.values())


def encode_array(values: npt.ArrayLike) -> bytes:
    """Encode one-dimensional numbers: integers in the smallest sufficient unsigned dtype, floats as float16.

    Raises ValueError for negative integers, more than one dimension, and other types.
    """
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "uif":
        raise ValueError(f"expected one dimension of numbers, found shape {array.shape} of {array.dtype}")
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # values above 65504 become infinite
            array = array.astype("<f2")
    else:
        if array.size and array.min() < 0:
            raise ValueError(f"expected numbers of at least 0, found {array.min()}")
        array = array.astype(np.min_scalar_type(int(array.max(initial=0))).newbyteorder("<"))
    planes = np.ascontiguousarray(array).view(np.uint8).reshape(array.size, array.itemsize).T
    return f"{array.dtype.kind}{array.itemsize}".encode() + zlib.compress(planes.tobytes(), 9)


def decode_array(blob: bytes) -> npt.NDArray[Any]:
    """Decode a blob of `encode_array`: (N,) in the stored dtype. Raises ValueError for any other blob."""
    try:
        dtype = np.dtype("<" + blob[:2].decode("ascii"))
        planes = np.frombuffer(zlib.decompress(blob[2:]), np.uint8).reshape(dtype.itemsize, -1)
    except (TypeError, ValueError, zlib.error) as error:
        raise ValueError(f"not an encoded array ({len(blob)} bytes, starting with {blob[:8]!r})") from error
    return np.ascontiguousarray(planes.T).view(dtype).reshape(-1)
