"""The rows of one file, from any row on: JSON lines, paragraphs and Parquet, compressed or not, here or on the Hub.

Not read by the builders of `datasets`, for what they lose (5.2, tried). Its `text` builder opens a compressed file in
the locale's encoding, whatever `encoding_errors` says, so that one bad byte fails ten megabytes of rows, and it takes
half a `.zst` file for a whole one. `skip(n)` of its `parquet` builder downloads what it skips: up to 290 MB for each
resume and each broken connection in a shard of SlimPajama-6B, where this reads on at the row group.
"""

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, cast

import zstandard

from trainer.errors import UserError

Row = Mapping[str, object] | str
"""The columns of a row, or, as a `str`, the fault for which it can't be read."""

CHUNK_BYTES = 1 << 18
BATCH_ROWS = 64
REMOTE = "hf://"


def faults_of_reading() -> tuple[type[Exception], ...]:
    """What reading a file raises when a connection breaks, a disk fails, or its bytes are damaged or cut off."""
    import pyarrow as pa
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the HTTP client it was built with

    return (OSError, EOFError, HTTPError, zlib.error, zstandard.ZstdError, pa.ArrowException)


def read_rows(
    address: str, kind: Literal["json lines", "paragraphs", "parquet"], text_column: str, first: int = 0
) -> Iterator[tuple[int, Row]]:
    """Yield (row number, row) from row `first` on; 0-based line, paragraph or Parquet row.

    Blank lines count but are not yielded. A paragraph's text stands under `text_column`. Of a Parquet file only the
    columns `text_column`, `meta` and `source` are read if it has the first of them, else all. Raises what
    `faults_of_reading` lists, and UserError for a `.json` file that is one array.
    """
    with _open(address) as file:
        if kind == "parquet":
            yield from _parquet_rows(file, text_column, first)
            return
        chunks = _decompressed(file, address)
        if kind == "json lines":
            yield from _json_rows(chunks, address, first)
        else:
            paragraphs = enumerate(_paragraphs(_lines(chunks)))
            yield from ((number, {text_column: text}) for number, text in islice(paragraphs, first, None))


def _open(address: str) -> AbstractContextManager[Any]:
    if not address.startswith(REMOTE):
        return Path(address).open("rb")
    from huggingface_hub import HfFileSystem

    # Blocks, not one long answer: a run that takes minutes over a shard would be cut off by the server.
    return cast(AbstractContextManager[Any], HfFileSystem().open(address, "rb"))


def _decompressed(file: Any, address: str) -> Iterator[bytes]:
    """The file's bytes, decompressed as its name says, over any number of frames. Raises EOFError if one is cut off."""
    start: Callable[[], Any]
    if address.lower().endswith(".gz"):
        start = lambda: zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)  # noqa: E731
    elif address.lower().endswith(".zst"):
        start = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj
    else:
        yield from iter(lambda: file.read(CHUNK_BYTES), b"")
        return
    frame = None
    while data := file.read(CHUNK_BYTES):
        while data:
            frame = frame or start()
            yield frame.decompress(data)
            data = b""
            if frame.eof:
                data, frame = frame.unused_data, None
    if frame is not None:
        raise EOFError("cut off in the middle of its compressed data")


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines without their ends. Only a newline ends one: other characters that might (U+2028) stand in texts."""
    parts: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        parts.append(first)
        if others:
            yield b"".join(parts)
            yield from others[:-1]
            parts = [others[-1]]
    if last := b"".join(parts):
        yield last


def _json_rows(chunks: Iterator[bytes], address: str, first: int) -> Iterator[tuple[int, Row]]:
    start = next(chunks, b"").removeprefix(b"\xef\xbb\xbf")
    if ".jsonl" not in address.lower() and start.lstrip().startswith(b"["):
        raise UserError(f"{address} is one JSON array: expected one JSON object per line (`jq -c '.[]'` writes them)")
    for number, line in islice(enumerate(_lines(chain([start], chunks))), first, None):
        if line.strip():
            yield number, _parse(line)


def _parse(line: bytes) -> Row:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        return "not UTF-8"
    except (ValueError, RecursionError):
        return "not JSON"
    return row if isinstance(row, dict) else "not an object"


def _paragraphs(lines: Iterator[bytes]) -> Iterator[str]:
    """Runs of lines between blank ones. A byte that is not UTF-8 becomes U+FFFD and spoils a word, not all."""
    paragraph: list[str] = []
    for line in chain(lines, [b""]):
        text = line.decode(errors="replace").removesuffix("\r").removeprefix("\ufeff")
        if text.strip():
            paragraph.append(text)
        elif paragraph:
            yield "\n".join(paragraph)
            paragraph = []


def _parquet_rows(file: Any, text_column: str, first: int) -> Iterator[tuple[int, Row]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as parquet:
        names = parquet.schema_arrow.names
        columns = [name for name in (text_column, "meta", "source") if name in names] if text_column in names else None
        number = 0
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            if number + rows <= first:
                number += rows  # passed by without a byte read
                continue
            for batch in parquet.iter_batches(BATCH_ROWS, [group], columns, use_threads=False):
                skipped = min(max(first - number, 0), batch.num_rows)
                yield from enumerate(_python_rows(batch.slice(skipped)), number + skipped)
                number += batch.num_rows


def _python_rows(batch: Any) -> list[Row]:
    try:
        return cast(list[Row], batch.to_pylist())
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            return ["not UTF-8"]
        return [row for index in range(batch.num_rows) for row in _python_rows(batch.slice(index, 1))]
