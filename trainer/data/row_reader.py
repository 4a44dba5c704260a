"""Read the rows of a file, from any row on: JSON lines, paragraphs or Parquet; compressed or not; local or on the Hub.

One bad row costs only itself. `Damaged` is raised where nothing further can be read. Memory is bounded by
`LONGEST_ROW_BYTES`; for Parquet by a row group, and for zstd by the window that a frame asks for (at most 2 GB).

The builders of `datasets` (5.2) can't be used here. The `text` builder decodes a compressed file in the locale's
encoding whatever `encoding_errors` says, so one bad byte loses ten megabytes of rows, and it treats a truncated `.zst`
file as complete. The `parquet` builder's `skip(n)` downloads what it skips: up to 290 MB for each resume and each
broken connection in a shard of SlimPajama-6B. This reader starts at the row group it needs.
"""

import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import zstandard

from trainer.data.hub_file import BLOCK_BYTES, HUB, HubFile, Patience, short_message
from trainer.errors import SourceUnreachable, UserError

RowOrFault = Mapping[str, object] | str
"""The columns of a row, or, as a `str`, why it can't be read."""

CHUNK_BYTES = 1 << 18
LONGEST_ROW_BYTES = 64 << 20
"""A longer line or paragraph is skipped without being kept in memory: parsing takes several times its size."""
BATCH_ROWS = 64
FOOTER_BYTES = 1 << 16
"""Arrow starts by reading this much of the end of a file."""

# RFC 8878: the magic numbers of a frame and of a skippable frame, and the largest block, compressed or not.
_ZSTD_FRAME = 0xFD2FB528
_ZSTD_SKIPPABLE = range(0x184D2A50, 0x184D2A60)
_LARGEST_ZSTD_BLOCK = 1 << 17

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NOT_UTF8 = "not UTF-8"
_CUT_OFF = "cut off in the middle of its compressed data"


class Damaged(Exception):
    """The file's bytes are corrupt, so no row after this point can be read."""


def read_rows(
    address: str,
    kind: Literal["json lines", "paragraphs", "parquet"],
    text_column: str,
    first: int = 0,
    patience: Patience | None = None,
    longest_row: int = LONGEST_ROW_BYTES,
) -> Iterator[tuple[int, RowOrFault]]:
    """Yield (row number, row) starting at row `first`. Rows are lines, paragraphs or Parquet rows, counted from 0.

    Blank lines are counted but not yielded. The text of a paragraph is in the column `text_column`. If a Parquet file
    has the column `text_column`, only that column, `meta` and `source` are read; otherwise all columns are.

    Args:
        patience: how long to retry a file on the Hub that does not answer. Default: do not retry.
        longest_row: bytes of the longest line or paragraph that is read.

    Raises:
        Damaged: after the last readable row. The same bytes always stop at the same row.
        SourceUnreachable: a local file can't be read, or what `HubFile` raises.
        UserError: a `.json` file holds one array, or a local file changed while it was read.
    """
    try:
        with _open(address, patience) as file:
            if kind == "parquet":
                yield from parquet_rows(file, text_column, first)
            elif kind == "json lines":
                yield from _json_rows(_decompressed(file, address), address, first, longest_row)
            else:
                lines = _lines(_decompressed(file, address), longest_row)
                yield from islice(enumerate(_paragraphs(lines, text_column, longest_row)), first, None)
    except _decoding_errors(kind) as error:
        raise Damaged(short_message(error) or type(error).__name__) from error


def _decoding_errors(kind: str) -> tuple[type[Exception], ...]:
    # Arrow raises OSError for a damaged page. A file that can't be read raises other errors (`_LocalFile`, `HubFile`).
    errors = (OSError, EOFError, zlib.error, zstandard.ZstdError)
    if kind != "parquet":
        return errors
    import pyarrow as pa  # imported here because it takes a fifth of a second and most runs do not need it

    return (*errors, pa.ArrowInvalid, pa.ArrowNotImplementedError)


# ------------------------------------------------------------------------------------------- opening and decompressing


class _LocalFile(io.FileIO):
    """A local file that distinguishes a failing disk and a changed file from damaged data.

    A failing disk raises SourceUnreachable: the file may be intact once the disk works again. A file that changes while
    it is read raises UserError: otherwise a run would train on half of each version under one name.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._state = self._size_and_time()

    def _size_and_time(self) -> tuple[int, int]:
        found = os.fstat(self.fileno())
        return found.st_size, found.st_mtime_ns

    def readinto(self, buffer: Any) -> int | None:
        try:
            count = super().readinto(buffer)
            has_changed = self._size_and_time() != self._state
        except OSError as error:
            raise _unreadable(str(self.name), error) from error
        if has_changed:
            raise UserError(f"{self.name} changed while it was read: restore the old file, then continue with --resume")
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except OSError as error:
            raise _unreadable(str(self.name), error) from error


def _unreadable(path: str, error: OSError) -> SourceUnreachable:
    reason = error.strerror or error
    return SourceUnreachable(f"can't read {path}: {reason}. Continue with --resume once it can be read")


def _open(address: str, patience: Patience | None) -> BinaryIO:
    if address.startswith(HUB):
        # One request per block instead of one long response: a run takes minutes for a shard, and the server would
        # close the connection.
        return cast(BinaryIO, io.BufferedReader(HubFile(address, patience or Patience()), BLOCK_BYTES))
    try:
        return cast(BinaryIO, io.BufferedReader(_LocalFile(Path(address)), CHUNK_BYTES))
    except OSError as error:
        raise _unreadable(address, error) from error


def _decompressed(file: BinaryIO, address: str) -> Iterator[bytes]:
    """Yield the file's bytes in small pieces, decompressed according to its name, across all its frames.

    Everything before a damaged place is yielded before the error is raised.
    """
    if address.lower().endswith(".gz"):
        return _gunzipped(file)
    if address.lower().endswith(".zst"):
        return _unzstandard(file)
    return iter(lambda: file.read(CHUNK_BYTES), b"")


def _gunzipped(file: BinaryIO) -> Iterator[bytes]:
    member: Any = None
    data = out = b""
    while data or len(out) == CHUNK_BYTES or (data := file.read(CHUNK_BYTES)):
        if member is None:
            data, out = data.lstrip(b"\0"), b""  # zero padding at the end is allowed, as in gzip itself
            if not data:
                continue
            member = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        before = member.copy()  # a call that fails loses what it has decompressed
        try:
            out = member.decompress(data, CHUNK_BYTES)
        except zlib.error:
            yield from _until_the_error(before, data)
        if out:
            yield out
        data = member.unconsumed_tail
        if member.eof:
            member, data, out = None, member.unused_data, b""
    if member is not None:
        raise EOFError(_CUT_OFF)


def _until_the_error(member: Any, data: bytes) -> Iterator[bytes]:
    """Yield byte by byte what can be decompressed, then raise the error again."""
    while True:
        yield member.decompress(data, 1)
        data = member.unconsumed_tail


def _unzstandard(file: BinaryIO) -> Iterator[bytes]:
    """Decompress block by block (at most 128 kB of output each), so that a damaged block costs only itself.

    It also keeps a decompression bomb from filling the memory. Of the format (RFC 8878) it knows only where blocks end.
    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    while magic := file.read(4):
        number = int.from_bytes(magic, "little")
        if number in _ZSTD_SKIPPABLE:
            left = int.from_bytes(_read_exactly(file, 4), "little")
            while left:
                left -= len(_read_exactly(file, min(left, CHUNK_BYTES)))
            continue
        if number != _ZSTD_FRAME:
            raise EOFError(_CUT_OFF if len(magic) < 4 else "not zstd data")
        frame = decompressor.decompressobj()
        descriptor = _read_exactly(file, 1)
        flags = descriptor[0]
        single, checksum = flags >> 5 & 1, flags >> 2 & 1
        rest = (not single) + (0, 1, 2, 4)[flags & 3] + (single, 2, 4, 8)[flags >> 6]
        frame.decompress(magic + descriptor + _read_exactly(file, rest))
        last = False
        while not last:
            head = _read_exactly(file, 3)
            block = int.from_bytes(head, "little")
            last, kind, size = bool(block & 1), block >> 1 & 3, block >> 3
            if kind == 3 or size > _LARGEST_ZSTD_BLOCK:
                raise zstandard.ZstdError("zstd data with an impossible block")
            if data := frame.decompress(head + _read_exactly(file, 1 if kind == 1 else size)):  # 1: a repeated byte
                yield data
        if checksum:
            frame.decompress(_read_exactly(file, 4))


def _read_exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise EOFError(_CUT_OFF)
    return data


# -------------------------------------------------------------------------------------------- JSON lines and paragraphs


def _lines(chunks: Iterator[bytes], longest: int) -> Iterator[bytes | None]:
    """Yield lines without their line ends; None for a line above `longest` bytes.

    Only a newline ends a line: other line separators (U+2028) occur in texts. If the first chunk has carriage returns
    and no newline, as old programs write them, carriage returns end the lines.
    """
    start = next(chunks, b"")
    end = b"\r" if b"\n" not in start and b"\r" in start[:-1] else b"\n"
    line, fits = bytearray(), True
    for chunk in chain([start], chunks):
        first, *others = chunk.split(end)
        fits = fits and len(line) + len(first) <= longest
        if fits:
            line += first
        else:
            line.clear()
        if others:
            yield bytes(line) if fits else None
            yield from others[:-1]
            line, fits = bytearray(others[-1]), True
    if line or not fits:
        yield bytes(line) if fits else None


def _json_rows(chunks: Iterator[bytes], address: str, first: int, longest: int) -> Iterator[tuple[int, RowOrFault]]:
    start = next(chunks, b"").removeprefix(_BYTE_ORDER_MARK)
    if ".jsonl" not in address.lower() and start.lstrip().startswith(b"["):
        raise UserError(f"{address} is one JSON array; expected one JSON object per line (convert it: `jq -c '.[]'`)")
    for number, line in islice(enumerate(_lines(chain([start], chunks), longest)), first, None):
        if line is None:
            yield number, too_long(longest)
        elif line.strip():
            yield number, _parse(line)


def too_long(longest: int) -> str:
    """Return the fault of a row above `longest` bytes."""
    return f"longer than {longest >> 20} MB"


def _parse(line: bytes) -> RowOrFault:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        return _NOT_UTF8
    except (ValueError, RecursionError):
        return "not JSON"
    return row if isinstance(row, dict) else "not an object"


def _paragraphs(lines: Iterator[bytes | None], text_column: str, longest: int) -> Iterator[RowOrFault]:
    """Yield the runs of lines between blank ones."""
    paragraph, fits = bytearray(), True
    for line in chain(lines, [b""]):
        text = None if line is None else line.removesuffix(b"\r").removeprefix(_BYTE_ORDER_MARK)
        if text is not None and _is_blank(text):
            if paragraph or not fits:
                yield _paragraph(paragraph, text_column) if fits else too_long(longest)
            paragraph, fits = bytearray(), True
            continue
        fits = fits and text is not None and len(paragraph) + len(text) < longest
        if text is None or not fits:
            paragraph = bytearray()
        else:
            paragraph += b"\n" + text if paragraph else text


def _is_blank(line: bytes) -> bool:
    line = line.strip()
    # Fast path: most lines start with a letter. Any other line may consist of spaces that are not ASCII.
    return not line[:1].isalnum() and not line.decode(errors="replace").strip()


def _paragraph(text: bytearray, text_column: str) -> RowOrFault:
    try:
        return {text_column: text.decode()}
    except UnicodeDecodeError:
        return _NOT_UTF8


# -------------------------------------------------------------------------------------------------------------- Parquet


def parquet_rows(file: BinaryIO, text_column: str, first: int) -> Iterator[tuple[int, RowOrFault]]:
    """Yield (row number, its columns or why it can't be read) from row `first` on.

    Raises what Arrow raises for a damaged file (ArrowInvalid, OSError), and what reading the file raises.
    """
    import pyarrow.parquet as pq

    ahead = _ReadAhead(file)
    # pre_buffer would read in one of Arrow's threads. If the process ends while that thread releases our bytes, it
    # aborts.
    with pq.ParquetFile(ahead, pre_buffer=False) as parquet:
        names = parquet.schema_arrow.names
        columns = [name for name in (text_column, "meta", "source") if name in names] if text_column in names else names
        number = 0
        for group in range(parquet.num_row_groups):
            metadata = parquet.metadata.row_group(group)
            if number + metadata.num_rows <= first:
                number += metadata.num_rows  # skipped without reading a byte
                continue
            ahead.load(_column_ranges(metadata, columns))
            for batch in parquet.iter_batches(BATCH_ROWS, [group], columns, use_threads=False):
                skipped = min(max(first - number, 0), batch.num_rows)
                yield from enumerate(_python_rows(batch.slice(skipped)), number + skipped)
                number += batch.num_rows


class _ReadAhead:
    """A file that has in memory what Arrow will ask for, before it asks.

    Arrow reads from within its own code. If a thread waits for the network there while the process ends, the process
    aborts ("no thread-state for this thread") and loses its exit code.
    """

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, io.SEEK_END)
        self._position = 0
        self._loaded: list[tuple[int, bytes]] = []
        self.load([(self._size - 8, 8)])
        end = self.read(8) if self._size < 8 else self._loaded[0][1]
        footer = int.from_bytes(end[:4], "little") + 8 if end[4:] == b"PAR1" else 0
        length = min(max(footer, FOOTER_BYTES), self._size)
        self.load([(self._size - length, length)])

    def load(self, ranges: list[tuple[int, int]]) -> None:
        """Read these (first byte, length) ranges, and drop the ones loaded before."""
        self._loaded = []
        for start, length in ranges:
            if 0 <= start < self._size and length > 0:  # otherwise the file is damaged; Arrow will report that
                self._file.seek(start)
                self._loaded.append((start, self._file.read(min(length, self._size - start))))

    def read(self, count: int = -1) -> bytes:
        end = self._size if count < 0 else min(self._position + count, self._size)
        first, self._position = self._position, max(self._position, end)
        for start, data in self._loaded:
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
        self._loaded = []


def _column_ranges(group: Any, columns: list[str]) -> list[tuple[int, int]]:
    """Return the (first byte, length) of each chunk of these columns in a row group."""
    ranges = []
    for index in range(group.num_columns):
        chunk = group.column(index)
        if any(chunk.path_in_schema == name or chunk.path_in_schema.startswith(f"{name}.") for name in columns):
            start = chunk.data_page_offset
            if chunk.dictionary_page_offset is not None and 0 < chunk.dictionary_page_offset < start:
                start = chunk.dictionary_page_offset
            ranges.append((start, chunk.total_compressed_size))
    return ranges


def _python_rows(batch: Any) -> list[RowOrFault]:
    try:
        return cast(list[RowOrFault], batch.to_pylist())
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            return [_NOT_UTF8]
        return [row for index in range(batch.num_rows) for row in _python_rows(batch.slice(index, 1))]
