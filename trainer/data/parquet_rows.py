"""The rows of a Parquet file, from any row on, reading no more than the columns and row groups that this takes."""

import io
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, cast

BATCH_ROWS = 64
FOOTER_BYTES = 1 << 16
"""What Arrow reads of a file's end to begin with."""


def parquet_rows(file: BinaryIO, text_column: str, first: int) -> Iterator[tuple[int, Mapping[str, object] | str]]:
    """Yield (row number, its columns, or why it can't be read) from row `first` on.

    Raises what Arrow raises of a damaged file (ArrowInvalid, OSError), and what reading the file raises.
    """
    import pyarrow.parquet as pq

    ahead = _ReadAhead(file)
    # pre_buffer would read in a thread of Arrow's own, which aborts a process that ends while it lets go of our bytes.
    with pq.ParquetFile(ahead, pre_buffer=False) as parquet:
        names = parquet.schema_arrow.names
        columns = [name for name in (text_column, "meta", "source") if name in names] if text_column in names else names
        number = 0
        for group in range(parquet.num_row_groups):
            about = parquet.metadata.row_group(group)
            if number + about.num_rows <= first:
                number += about.num_rows  # passed by without a byte read
                continue
            ahead.hold(_places(about, columns))
            for batch in parquet.iter_batches(BATCH_ROWS, [group], columns, use_threads=False):
                skipped = min(max(first - number, 0), batch.num_rows)
                yield from enumerate(_python_rows(batch.slice(skipped)), number + skipped)
                number += batch.num_rows


class _ReadAhead:
    """A file of which what Arrow will ask for is in memory before it asks.

    Arrow asks from inside its own code. A thread that waits for the network there while the process ends aborts the
    process ("no thread-state for this thread"), and its exit code is lost.
    """

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, io.SEEK_END)
        self._position = 0
        self._held: list[tuple[int, bytes]] = []
        self.hold([(self._size - 8, 8)])
        end = self.read(8) if self._size < 8 else self._held[0][1]
        footer = int.from_bytes(end[:4], "little") + 8 if end[4:] == b"PAR1" else 0
        length = min(max(footer, FOOTER_BYTES), self._size)
        self.hold([(self._size - length, length)])

    def hold(self, places: list[tuple[int, int]]) -> None:
        """Read these (first byte, length), and forget the ones before."""
        self._held = []
        for start, length in places:
            if 0 <= start < self._size and length > 0:  # else the file is damaged, which Arrow will find
                self._file.seek(start)
                self._held.append((start, self._file.read(min(length, self._size - start))))

    def read(self, count: int = -1) -> bytes:
        end = self._size if count < 0 else min(self._position + count, self._size)
        first, self._position = self._position, max(self._position, end)
        for start, data in self._held:
            if start <= first and end <= start + len(data):
                return data[first - start : end - start]
        self._file.seek(first)
        return self._file.read(max(end - first, 0))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        self._held = []


def _places(group: Any, columns: list[str]) -> list[tuple[int, int]]:
    """Where a row group keeps these columns: first byte and length of each of their chunks."""
    places = []
    for index in range(group.num_columns):
        chunk = group.column(index)
        if any(chunk.path_in_schema == name or chunk.path_in_schema.startswith(f"{name}.") for name in columns):
            start = chunk.data_page_offset
            if chunk.dictionary_page_offset is not None and 0 < chunk.dictionary_page_offset < start:
                start = chunk.dictionary_page_offset
            places.append((start, chunk.total_compressed_size))
    return places


def _python_rows(batch: Any) -> list[Mapping[str, object] | str]:
    try:
        return cast(list[Mapping[str, object] | str], batch.to_pylist())
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            return ["not UTF-8"]
        return [row for index in range(batch.num_rows) for row in _python_rows(batch.slice(index, 1))]
