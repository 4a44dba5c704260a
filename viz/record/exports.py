"""Export a store to JSON files: `metrics_history.json`, `text_samples.json`, `run.json`.

Strict JSON: non-finite values are `null`. Six significant digits; counts in full. Each value is formatted once: the
text of earlier rows is kept, so that a later export of a long run costs little more than writing the file.
"""

import json
import math
import operator
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from common.file_replacement import replace_file
from viz.record.reader import COLUMNS, Columns, StoreReader

_COUNTS = ("steps", "tokens", "bytes")
_SAMPLE = ("step", "input", "output", "accuracy", "prompt", "reference", "source")


class Exporter:
    """Writes the files repeatedly and keeps the text of the rows it has formatted."""

    def __init__(self) -> None:
        self._rows = 0
        self._arrays = {name: bytearray() for name in COLUMNS}
        self._last_sample = 0
        self._samples = bytearray()

    def export(self, store: StoreReader, columns: Columns, folder: Path) -> None:
        """Write all three files. `columns` has all rows; only new ones are formatted.

        Raises OSError for the first file that could not be written, after writing the others.
        """
        self._format_metrics(columns)
        self._format_samples(store)
        failure = None
        for name, pieces in (
            ("metrics_history.json", self._metrics()),
            ("text_samples.json", (b"[", self._samples, b"\n]\n")),
            ("run.json", (_dump(describe_run(store.run(), columns), indent=2), b"\n")),
        ):
            try:
                replace_file(folder / name, operator.methodcaller("writelines", pieces), durable=False)
            except OSError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _format_metrics(self, columns: Columns) -> None:
        for name, text in self._arrays.items():
            new = columns[name][self._rows :]
            if text and len(new):
                text += b", "
            text += ", ".join(_strings(name, new.tolist())).encode("ascii")
        self._rows = len(columns["steps"])

    def _metrics(self) -> Iterable[bytes | bytearray]:
        for index, (name, text) in enumerate(self._arrays.items()):
            yield (",\n" if index else "{").encode() + f'"{name}": ['.encode()
            yield text
            yield b"]"
        yield b"}\n"

    def _format_samples(self, store: StoreReader) -> None:
        for row in store.text_samples(self._last_sample):
            self._last_sample = row["id"]
            if not row["input"] and row["reference"] is None and row["prompt"]:  # a repeated prompt, for the chart only
                continue
            sample = {name: row[name] for name in _SAMPLE} | ({"error": row["error"]} if row["error"] else {})
            self._samples += (b",\n" if self._samples else b"\n") + _dump(sample)


def _strings(name: str, values: list[Any]) -> Iterable[str]:
    if name == "source":
        known: dict[str, str] = {}
        return (known.setdefault(value, json.dumps(value)) for value in values)
    pattern = ".0f" if name in _COUNTS else ".6g"
    return (format(value, pattern) if math.isfinite(value) else "null" for value in values)


def _dump(value: Any, indent: int | None = None) -> bytes:
    return json.dumps(_strict(value), allow_nan=False, indent=indent).encode("ascii")


def _strict(value: Any) -> Any:
    """Return the value with six significant digits, and None for non-finite numbers."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    return [_strict(item) for item in value] if isinstance(value, list | tuple) else value


def describe_run(run: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    """Return the content of `run.json`: the row of `run` without the tokenizer, times in ISO 8601 UTC.

    Added are the last step in the JSON files (None without steps) and the MFU.
    """
    through = int(columns["steps"][-1]) if len(columns["steps"]) else None
    known = {name: value for name, value in run.items() if name not in ("id", "tokenizer", "started", "ended")}
    return known | {
        "started": _iso(run["started"]),
        "ended": _iso(run["ended"]),
        "json_through_step": through,
        "mfu": _mfu(run["flops"], columns),
    }


def _mfu(flops: Mapping[str, float], columns: Columns) -> float | None:
    """Return the model FLOPs utilization (arXiv 2204.02311, appendix B) over the whole time of the steps.

    That is the operations the documents need, divided by those the machine could do, waiting and writing included.
    """
    tokens, seconds = columns["tokens"], float(np.nansum(columns["seconds"]))
    if not flops or not seconds:
        return None
    needed = flops["per_token"] * np.nansum(tokens) + flops["per_token_squared"] * np.nansum(tokens**2)
    return float(needed / (seconds * flops["peak_per_second"]))


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
