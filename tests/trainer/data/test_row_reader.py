"""Every kind of file, written by common tools and read back from every row."""

import gzip
import json
import os
import random
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.row_reader import LONGEST_ROW_BYTES, Damaged, read_rows, too_long
from trainer.data.sources import kind_of
from trainer.errors import SourceUnreachable, UserError

TEXTS = ["first", "zwei\u2028Zeilen", "三", "four\n\nwith paragraphs", "🎉" * 1000, "", "last"]
COMPRESS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()


def rows_of(path: Path, first: int = 0, column: str = "text", **options: int) -> Iterator[tuple[int, object]]:
    kind = kind_of(path.name)
    assert kind is not None
    for number, row in read_rows(str(path), kind, column, first, **options):
        yield number, row if isinstance(row, str) else row.get(column)


def read(path: Path, *arguments: Any, **options: Any) -> list[tuple[int, object]]:
    return list(rows_of(path, *arguments, **options))


def read_until_damaged(path: Path, first: int = 0) -> tuple[list[tuple[int, object]], str]:
    found: list[tuple[int, object]] = []
    with pytest.raises(Damaged) as caught:
        found.extend(rows_of(path, first))
    return found, str(caught.value)


def two_frames(data: bytes) -> bytes:
    return zstandard.compress(data[:100]) + zstandard.compress(data[100:])


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("a.jsonl", bytes),
        ("a.json", bytes),
        ("a.JSONL.GZ", gzip.compress),
        ("a.json.gz", lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:])),
        ("a.jsonl.zst", zstandard.compress),
        ("a.jsonl.zst", two_frames),
        ("a.jsonl", lambda data: b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n").removesuffix(b"\r\n")),
    ],
)
def test_json_lines(tmp_path: Path, name: str, compress: Callable[[bytes], bytes]) -> None:
    path = tmp_path / name
    path.write_bytes(compress(lines(TEXTS)))
    expected = list(enumerate(TEXTS))
    for first in range(len(TEXTS) + 1):
        assert read(path, first) == expected[first:]


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=20), max_size=20), st.integers(0, 20))
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, texts: list[str], first: int) -> None:
    path = tmp_path_factory.mktemp("any") / "a.jsonl.zst"
    path.write_bytes(zstandard.compress(lines(texts)))
    assert read(path, first) == list(enumerate(texts))[first:]


def test_parquet_from_every_row_and_a_row_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"text {index}" for index in range(300)]
    pq.write_table(pa.table({"id": range(300), "text": texts}), path, row_group_size=100)
    for first in (0, 1, 63, 64, 99, 100, 101, 200, 299, 300):
        assert read(path, first) == list(enumerate(texts))[first:]
    broken = pa.Array.from_buffers(pa.string(), 3, pa.array([b"one", b"tw\xff", b"three"], pa.binary()).buffers())
    pq.write_table(pa.table({"text": broken}), path)
    assert read(path) == [(0, "one"), (1, "not UTF-8"), (2, "three")]


def test_parquet_reads_only_the_columns_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1], "text": ["a"], "meta": [{"redpajama_set_name": "C4"}]}), path)
    assert next(read_rows(str(path), "parquet", "text")) == (0, {"text": "a", "meta": {"redpajama_set_name": "C4"}})
    assert set(next(read_rows(str(path), "parquet", "nope"))[1]) == {"id", "text", "meta"}


@pytest.mark.parametrize("options", [{}, {"pre_buffer": True}], ids=["ours", "the control"])
def test_parquet_is_read_in_the_calling_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any) -> None:
    """If one of Arrow's threads still holds bytes of ours when the process ends, the process aborts."""
    path, threads, parquet_file = tmp_path / "a.parquet", set(), pq.ParquetFile
    pq.write_table(pa.table({"text": [str(row) for row in range(300)]}), path, row_group_size=100)

    class Watched:
        """Arrow's view of the file, which records the threads that read it."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def read(self, count: int = -1) -> bytes:
            threads.add(threading.get_ident())
            return bytes(self.file.read(count))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    monkeypatch.setattr(pq, "ParquetFile", lambda file, **own: parquet_file(Watched(file), **own | options))
    assert len(read(path)) == 300
    assert (threads == {threading.get_ident()}) is not bool(options)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_paragraph_is_a_row(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    text = "\ufeff\n\nOne line.\nTwo\xa0lines.\r\n \t\r\n\r\nSecond.\n\n\n\nThird.".encode()
    path.write_bytes(COMPRESS[suffix](text + b" \xff!\n" + "\u3000\nFourth.".encode()))
    expected = [(0, "One line.\nTwo\xa0lines."), (1, "Second."), (2, "not UTF-8"), (3, "Fourth.")]
    for first in range(5):
        assert read(path, first, column="body") == expected[first:]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_bad_line_costs_only_itself(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    bad = [b'{"text": "tw\xff"}', b'{"text": "thr', b"[1, 2]", b"", b"  ", b"[" * 100_000, b"7", b'{"text": "eight"}']
    path.write_bytes(COMPRESS[suffix](b'{"text": "zero"}\n' + b"\n".join(bad)))
    rows = ["zero", "not UTF-8", "not JSON", "not an object", "not JSON", "not an object", "eight"]
    assert read(path) == list(zip([0, 1, 2, 3, 6, 7, 8], rows, strict=True))


def test_carriage_returns_alone_end_lines_and_a_json_array_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\r{"text": "two"}\r\r{"text": "four"}\r')
    assert read(tmp_path / "a.jsonl") == [(0, "one"), (1, "two"), (3, "four")]
    (tmp_path / "a.txt").write_bytes(b"one\rline\r\rtwo")
    assert read(tmp_path / "a.txt") == [(0, "one\nline"), (1, "two")]
    (tmp_path / "a.json").write_text('\n [{"text": "a"}]')
    with pytest.raises(UserError, match="one JSON object per line"):
        read(tmp_path / "a.json")


def flushed_in_blocks(data: bytes) -> bytes:
    """As written by a program that flushes now and then and does not know the length in advance."""
    packer = zstandard.ZstdCompressor(level=3).compressobj()
    pieces = [data[start : start + 70_000] for start in range(0, len(data), 70_000)]
    flush = zstandard.COMPRESSOBJ_FLUSH_BLOCK
    return b"".join(packer.compress(piece) + packer.flush(flush) for piece in pieces) + packer.flush()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "zst": zstandard.compress,
    "strongest zst": zstandard.ZstdCompressor(level=19).compress,  # blocks of uneven size
    "zst with checksums": zstandard.ZstdCompressor(write_checksum=True).compress,
    "zst of unknown length": flushed_in_blocks,
}


@pytest.mark.parametrize("how", PACKERS)
def test_all_rows_before_the_damage_are_read_and_none_after_it(tmp_path: Path, how: str) -> None:
    """Truncated files, and one with flipped bits: what the format's own tool can recover is recovered."""
    generator = random.Random(how)
    texts = [generator.randbytes(generator.randint(5, 100)).hex() for _ in range(20_000)]
    packed = PACKERS[how](lines(texts))
    path = tmp_path / f"a.jsonl.{'gz' if how == 'gz' else 'zst'}"
    for share in (0.2, 0.5, 0.9):
        path.write_bytes(packed[: int(len(packed) * share)])
        found, error = read_until_damaged(path)
        assert found == list(enumerate(texts))[: len(found)] and "cut off" in error
        assert len(found) > len(texts) * share - 1500  # a block of 128 kB holds about 1,000
        assert read_until_damaged(path, first=len(found) - 3) == (found[-3:], error)
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 0x55
    path.write_bytes(flipped)
    try:
        found = read(path)
        assert how not in ("gz", "zst with checksums"), "only a checksum detects that a text is another one"
    except Damaged:
        found, _ = read_until_damaged(path)
    intact = next((place for place, (pair, text) in enumerate(zip(found, texts)) if pair[1] != text), len(found))  # noqa: B905
    assert intact > len(texts) * 0.5 - 1500


def test_gzip_gives_every_byte_before_the_damage(tmp_path: Path) -> None:
    """The reference is zlib itself, fed byte by byte."""
    data = lines([str(index**3) for index in range(30_000)])
    packed = bytearray(gzip.compress(data))
    place = len(packed) // 2
    packed[place : place + 40] = b"\xff" * 40
    by_byte, recovered = zlib.decompressobj(wbits=31), b""
    with pytest.raises(zlib.error):
        for byte in packed:
            recovered += by_byte.decompress(bytes([byte]))
    (tmp_path / "a.jsonl.gz").write_bytes(packed)
    found, error = read_until_damaged(tmp_path / "a.jsonl.gz")
    assert "invalid" in error
    assert len(found) == recovered.count(b"\n") > 10_000


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.txt.gz", "a.parquet"])
@pytest.mark.parametrize("data", [b"something else altogether", b"xyz", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd\xff"])
def test_a_file_of_another_kind_is_damaged(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    found, _ = read_until_damaged(tmp_path / name)
    assert found == []


def test_a_damaged_row_group_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    generator = random.Random(1)
    texts = [generator.randbytes(200).hex() for _ in range(300)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=100, compression="zstd", use_dictionary=False)
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data[start + 1000 : start + 1100] = bytes(100)
    path.write_bytes(data)
    found, error = read_until_damaged(path)
    assert found == list(enumerate(texts))[:100] and error and "\n" not in error


def test_padding_and_skippable_frames_are_no_damage(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(["one"])) + bytes(1000))
    skippable = (0x184D2A53).to_bytes(4, "little") + (300_000).to_bytes(4, "little") + bytes(300_000)
    (tmp_path / "a.jsonl.zst").write_bytes(skippable + zstandard.compress(lines(["one"])) + skippable)
    for suffix in (".gz", ".zst"):
        assert read(tmp_path / f"a.jsonl{suffix}") == [(0, "one")]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_row_that_is_too_long_costs_only_itself(tmp_path: Path, suffix: str) -> None:
    longest = 1 << 20
    fault = too_long(longest)
    path = tmp_path / f"a.jsonl{suffix}"
    for length, expected in ((longest - len(lines([""])) + 1, None), (longest + 1, fault), (10 * longest, fault)):
        path.write_bytes(COMPRESS[suffix](lines(["a", "b" * length, "c"])))
        assert [text for _, text in read(path, longest_row=longest)] == ["a", expected or "b" * length, "c"]
    assert [len(str(text)) for _, text in read(path)] == [1, 10 * longest, 1], "the default limit is higher"
    path, many_lines = tmp_path / f"a.txt{suffix}", "\n".join(["some words"] * 200_000)
    path.write_bytes(COMPRESS[suffix](f"a\n\n{many_lines}\n\nb\n\n{many_lines}".encode()))
    assert read(path, longest_row=longest) == [(0, "a"), (1, fault), (2, "b"), (3, fault)]
    assert [len(str(text)) for _, text in read(path)] == [1, len(many_lines)] * 2, "the default limit is higher"


PEAK = """
import resource, sys
from trainer.data.row_reader import Damaged, read_rows
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    found = [row for _, row in read_rows(sys.argv[1], sys.argv[2], "text")]
except Damaged as error:
    found = [str(error)]
print(found, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) >> 10)
"""


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.txt.zst", "a.jsonl.gz"])
def test_a_decompression_bomb_does_not_fill_the_memory(tmp_path: Path, name: str) -> None:
    """A gigabyte (gzip: half) without a newline, in a file of less than 3 MB, costs less than 400 MB."""
    path = tmp_path / name
    is_zst = name.endswith(".zst")
    packer: Any = zstandard.ZstdCompressor(level=1).compressobj() if is_zst else zlib.compressobj(1, wbits=31)
    with path.open("wb") as file:
        for _ in range(1024 if is_zst else 512):
            file.write(packer.compress(b"x" * (1 << 20)))
        file.write(packer.flush())
    assert path.stat().st_size < 3_000_000
    command = [sys.executable, "-c", PEAK, path, str(kind_of(name))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found, megabytes = done.stdout.rsplit(maxsplit=1)
    assert found == f"['{too_long(LONGEST_ROW_BYTES)}']"
    assert int(megabytes) < 400


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file whose first byte is an I/O error")
@pytest.mark.parametrize("kind", ["json lines", "paragraphs", "parquet"])
def test_a_failing_disk_is_unreachable_and_not_damaged(tmp_path: Path, kind: Any) -> None:
    with pytest.raises(SourceUnreachable, match=r"can't read /proc/self/mem: .*--resume"):
        list(read_rows("/proc/self/mem", kind, "text"))
    with pytest.raises(SourceUnreachable, match=r"gone\.jsonl: No such file"):
        list(read_rows(str(tmp_path / "gone.jsonl"), kind, "text"))


@pytest.mark.parametrize("change", ["cut", "overwritten"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "big.jsonl"
    path.write_text((json.dumps({"text": "x" * 1000}) + "\n") * 2000)
    rows = read_rows(str(path), "json lines", "text")
    assert next(rows)[0] == 0
    if change == "cut":
        os.truncate(path, 1_000_000)
    else:
        with path.open("r+") as file:
            file.seek(1_500_000)
            file.write("y" * 1000)
    with pytest.raises(UserError, match="changed while it was read"):
        list(rows)


BY_DATASETS = """
import json, os, sys
import datasets
for name, builder, options in json.loads(sys.argv[1]):
    rows = datasets.load_dataset(builder, data_files=[name], split="train", streaming=True, **options)
    print(json.dumps([row["text"] for row in rows]), flush=True)
os._exit(0)  # Arrow's threads may abort the interpreter's own end after a streamed Parquet file
"""


def test_intact_files_are_read_as_datasets_reads_them(tmp_path: Path) -> None:
    """The reference: the builders of `datasets` that this reader replaces (docs/decisions.md)."""
    texts = [f"document {number}: é 三 \u2028 {'x' * number}" for number in range(300)]
    files: list[tuple[str, str, dict[str, str]]] = []
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.txt"):
        path, builder, options = tmp_path / name, "text", {}
        if name.endswith(".parquet"):
            builder = "parquet"
            pq.write_table(pa.table({"text": texts}), path, row_group_size=70)
        elif name.endswith(".txt"):
            options = {"sample_by": "paragraph"}
            path.write_text("\n\n".join(texts), encoding="utf-8")
        else:
            path.write_bytes(COMPRESS.get(path.suffix, bytes)(lines(texts)))
        files.append((str(path), builder, options))
    command = [sys.executable, "-c", BY_DATASETS, json.dumps(files)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    for (name, *_), line in zip(files, done.stdout.splitlines(), strict=True):
        theirs = json.loads(line)
        if "jsonl" in name:
            theirs = [json.loads(row)["text"] for row in theirs]
        assert [text for _, text in read(Path(name))] == theirs == texts, name
