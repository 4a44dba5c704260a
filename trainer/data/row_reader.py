"""The rows of one file, from any row on: JSON lines, paragraphs and Parquet, compressed or not, here or on the Hub.

What can be read is read: a bad row costs itself, and only what no row can be read from any more is `Damaged`. Memory is
bounded by LONGEST_ROW_BYTES, of Parquet by a row group and of zstd by the window that a frame asks for (at most 2 GB).

Not read by the builders of `datasets`, for what they lose (5.2, tried). Its `text` builder opens a compressed file in
the locale's encoding, whatever `encoding_errors` says, so that one bad byte fails ten megabytes of rows, and it takes
half a `.zst` file for a whole one. `skip(n)` of its `parquet` builder downloads what it skips: up to 290 MB for each
resume and each broken connection in a shard of SlimPajama-6B, where this reads on at the row group.
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

from trainer.data.hub_file import BLOCK_BYTES, HUB, HubFile, Patience, one_line
from trainer.errors import SourceUnreachable, UserError

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


Row = Mapping[str, object] | str
"""The columns of a row, or, as a `str`, the fault for which it can't be read."""

CHUNK_BYTES = 1 << 18
LONGEST_ROW_BYTES = 64 << 20
"""A longer line or paragraph is passed by without being held: parsing one takes several times its size."""
TOO_LONG = f"longer than {LONGEST_ROW_BYTES >> 20} MB"

# RFC 8878: how a frame and a frame to be skipped begin, and the most bytes of a block, packed or not.
_ZSTD_FRAME = 0xFD2FB528
_LARGEST_ZSTD_BLOCK = 1 << 17
_ZSTD_SKIPPABLE = range(0x184D2A50, 0x184D2A60)


class Damaged(Exception):
    """The bytes of a file are not what they should be, so that no row behind this place can be read."""


def read_rows(
    address: str,
    kind: Literal["json lines", "paragraphs", "parquet"],
    text_column: str,
    first: int = 0,
    patience: Patience | None = None,
) -> Iterator[tuple[int, Row]]:
    """Yield (row number, row) from row `first` on; 0-based line, paragraph or Parquet row.

    Blank lines count but are not yielded. A paragraph's text stands under `text_column`. Of a Parquet file only the
    columns `text_column`, `meta` and `source` are read if it has the first of them, else all.

    Args:
        patience: with a file on the Hub that does not answer; without it the first failure is the last.

    Raises:
        Damaged: behind the last row that can be read, always the same one of the same bytes.
        SourceUnreachable: a local file can't be read, or what `HubFile` raises.
        UserError: a `.json` file that is one array.
    """
    try:
        with _open(address, patience) as file:
            if kind == "parquet":
                yield from parquet_rows(file, text_column, first)
            elif kind == "json lines":
                yield from _json_rows(_decompressed(file, address), address, first)
            else:
                paragraphs = enumerate(_paragraphs(_lines(_decompressed(file, address)), text_column))
                yield from islice(paragraphs, first, None)
    except _faults_of_decoding(kind) as error:
        raise Damaged(one_line(error) or type(error).__name__) from error


def _faults_of_decoding(kind: str) -> tuple[type[Exception], ...]:
    # Arrow says OSError of a damaged page. Files raise other things when they can't be read (below, and `HubFile`).
    faults = (OSError, EOFError, zlib.error, zstandard.ZstdError)
    if kind != "parquet":
        return faults
    import pyarrow as pa  # here: it takes a fifth of a second, and most runs do without it

    return (*faults, pa.ArrowInvalid, pa.ArrowNotImplementedError)


class _LocalFile(io.FileIO):
    """A file whose disk fails is out of reach, not damaged: it may be whole when the disk is back.

    One that changes while it is read is another file: half of each would be trained on, under the name of the first.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._state = self._look()

    def _look(self) -> tuple[int, int]:
        found = os.fstat(self.fileno())
        return found.st_size, found.st_mtime_ns

    def readinto(self, buffer: Any) -> int | None:
        try:
            count = super().readinto(buffer)
            has_changed = self._look() != self._state
        except OSError as error:
            raise _out_of_reach(str(self.name), error) from error
        if has_changed:
            raise UserError(f"{self.name} has changed while it was read: put the old file back, then --resume goes on")
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except OSError as error:
            raise _out_of_reach(str(self.name), error) from error


def _out_of_reach(path: str, error: OSError) -> SourceUnreachable:
    return SourceUnreachable(f"can't read {path}: {error.strerror or error}. Once it can be read, go on with --resume")


def _open(address: str, patience: Patience | None) -> BinaryIO:
    if address.startswith(HUB):
        # Blocks, not one long answer: a run that takes minutes over a shard would be cut off by the server.
        return cast(BinaryIO, io.BufferedReader(HubFile(address, patience or Patience()), BLOCK_BYTES))
    try:
        return cast(BinaryIO, io.BufferedReader(_LocalFile(Path(address)), CHUNK_BYTES))
    except OSError as error:
        raise _out_of_reach(address, error) from error


def _decompressed(file: BinaryIO, address: str) -> Iterator[bytes]:
    """The file's bytes in small pieces, decompressed as its name says, over any number of frames.

    Whatever stands before a damaged place comes out before the error is raised.
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
            data, out = data.lstrip(b"\0"), b""  # zeros may fill the file up, as gzip itself allows
            if not data:
                continue
            member = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        before = member.copy()  # what is decompressed by a call that fails is lost with it
        try:
            out = member.decompress(data, CHUNK_BYTES)
        except zlib.error:
            yield from _up_to_the_error(before, data)
        if out:
            yield out
        data = member.unconsumed_tail
        if member.eof:
            member, data, out = None, member.unused_data, b""
    if member is not None:
        raise EOFError("cut off in the middle of its compressed data")


def _up_to_the_error(member: Any, data: bytes) -> Iterator[bytes]:
    """Byte by byte what can be decompressed, then raise again what comes then."""
    while True:
        yield member.decompress(data, 1)
        data = member.unconsumed_tail


def _unzstandard(file: BinaryIO) -> Iterator[bytes]:
    """One block at a time (at most 128 kB of output each), so that neither a damaged one nor a bomb takes others along.

    Of the format (RFC 8878) this knows only where a block ends.
    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    while magic := file.read(4):
        number = int.from_bytes(magic, "little")
        if number in _ZSTD_SKIPPABLE:
            left = int.from_bytes(_exactly(file, 4), "little")
            while left:
                left -= len(_exactly(file, min(left, CHUNK_BYTES)))
            continue
        if number != _ZSTD_FRAME:
            raise EOFError("cut off in the middle of its compressed data" if len(magic) < 4 else "not zstd data")
        frame = decompressor.decompressobj()
        descriptor = _exactly(file, 1)
        flags = descriptor[0]
        single, checksum = flags >> 5 & 1, flags >> 2 & 1
        rest = (not single) + (0, 1, 2, 4)[flags & 3] + (single, 2, 4, 8)[flags >> 6]
        frame.decompress(magic + descriptor + _exactly(file, rest))
        last = False
        while not last:
            head = _exactly(file, 3)
            block = int.from_bytes(head, "little")
            last, kind, size = bool(block & 1), block >> 1 & 3, block >> 3
            if kind == 3 or size > _LARGEST_ZSTD_BLOCK:
                raise zstandard.ZstdError("zstd data with an impossible block")
            if data := frame.decompress(head + _exactly(file, 1 if kind == 1 else size)):  # 1: one byte, repeated
                yield data
        if checksum:
            frame.decompress(_exactly(file, 4))


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise EOFError("cut off in the middle of its compressed data")
    return data


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes | None]:
    """Lines without their ends; None for one that is too long to be held.

    Only a newline ends one: other characters that might (U+2028) stand in texts. Where the first chunk has carriage
    returns alone, as old programs write them, those do.
    """
    start = next(chunks, b"")
    end = b"\r" if b"\n" not in start and b"\r" in start[:-1] else b"\n"
    line, is_held = bytearray(), True
    for chunk in chain([start], chunks):
        first, *others = chunk.split(end)
        is_held = is_held and len(line) + len(first) <= LONGEST_ROW_BYTES
        if is_held:
            line += first
        else:
            line.clear()
        if others:
            yield bytes(line) if is_held else None
            yield from others[:-1]
            line, is_held = bytearray(others[-1]), True
    if line or not is_held:
        yield bytes(line) if is_held else None


def _json_rows(chunks: Iterator[bytes], address: str, first: int) -> Iterator[tuple[int, Row]]:
    start = next(chunks, b"").removeprefix(b"\xef\xbb\xbf")
    if ".jsonl" not in address.lower() and start.lstrip().startswith(b"["):
        raise UserError(f"{address} is one JSON array: expected one JSON object per line (`jq -c '.[]'` writes them)")
    for number, line in islice(enumerate(_lines(chain([start], chunks))), first, None):
        if line is None:
            yield number, TOO_LONG
        elif line.strip():
            yield number, _parse(line)


def _parse(line: bytes) -> Row:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        return "not UTF-8"
    except (ValueError, RecursionError):
        return "not JSON"
    return row if isinstance(row, dict) else "not an object"


def _paragraphs(lines: Iterator[bytes | None], text_column: str) -> Iterator[Row]:
    """Runs of lines between blank ones."""
    paragraph, is_held = bytearray(), True
    for line in chain(lines, [b""]):
        text = None if line is None else line.removesuffix(b"\r").removeprefix(b"\xef\xbb\xbf")
        if text is not None and _is_blank(text):
            if paragraph or not is_held:
                yield _paragraph(paragraph, text_column) if is_held else TOO_LONG
            paragraph, is_held = bytearray(), True
            continue
        is_held = is_held and text is not None and len(paragraph) + len(text) < LONGEST_ROW_BYTES
        if text is None or not is_held:
            paragraph = bytearray()
        else:
            paragraph += b"\n" + text if paragraph else text


def _is_blank(line: bytes) -> bool:
    line = line.strip()
    # Most lines begin with a letter; the others may hold nothing but spaces that ASCII does not know.
    return not line[:1].isalnum() and not line.decode(errors="replace").strip()


def _paragraph(text: bytearray, text_column: str) -> Row:
    try:
        return {text_column: text.decode()}
    except UnicodeDecodeError:
        return "not UTF-8"
