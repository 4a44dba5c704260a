"""Each kind of file, written by the tools that people write it with, read back from every row."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from trainer.errors import UserError
from trainer.rows import faults_of_reading, read_rows
from trainer.sources import kind_of

TEXTS = ["first", "zwei\u2028Zeilen", "三", "four\n\nwith paragraphs", "🎉" * 1000, "", "last"]


def lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()


def read(path: Path, first: int = 0, column: str = "text") -> list[tuple[int, object]]:
    kind = kind_of(path.name)
    assert kind is not None
    return [
        (number, row if isinstance(row, str) else row.get(column))
        for number, row in read_rows(str(path), kind, column, first)
    ]


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


def test_parquet_from_every_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"text {index}" for index in range(300)]
    pq.write_table(pa.table({"id": range(300), "text": texts}), path, row_group_size=100)
    for first in (0, 1, 63, 64, 99, 100, 101, 200, 299, 300):
        assert read(path, first) == list(enumerate(texts))[first:]


def test_parquet_reads_only_the_columns_that_are_needed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1], "text": ["a"], "meta": [{"redpajama_set_name": "C4"}]}), path)
    assert next(read_rows(str(path), "parquet", "text")) == (0, {"text": "a", "meta": {"redpajama_set_name": "C4"}})
    assert set(next(read_rows(str(path), "parquet", "nope"))[1]) == {"id", "text", "meta"}


def test_parquet_with_a_row_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    broken = pa.Array.from_buffers(pa.string(), 3, pa.array([b"one", b"tw\xff", b"three"], pa.binary()).buffers())
    pq.write_table(pa.table({"text": broken}), path)
    assert read(path) == [(0, "one"), (1, "not UTF-8"), (2, "three")]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_paragraph_is_a_row(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    text = "\ufeff\n\nOne line.\nTwo\xa0lines.\r\n \t\r\n\r\nSecond.\n\n\n\nThird.".encode() + b" \xff!"
    path.write_bytes({"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix](text))
    expected = [(0, "One line.\nTwo\xa0lines."), (1, "Second."), (2, "Third. \ufffd!")]
    for first in range(4):
        assert read(path, first, column="body") == expected[first:]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_bad_line_costs_itself_only(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    bad = [b'{"text": "tw\xff"}', b'{"text": "thr', b"[1, 2]", b"", b"  ", b"[" * 100_000, b"7", b'{"text": "eight"}']
    path.write_bytes(
        {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix](b'{"text": "zero"}\n' + b"\n".join(bad))
    )
    assert read(path) == [
        (0, "zero"),
        (1, "not UTF-8"),
        (2, "not JSON"),
        (3, "not an object"),
        (6, "not JSON"),
        (7, "not an object"),
        (8, "eight"),
    ]


def test_a_huge_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(["x" * 10_000_000, "small"]))
    assert [len(str(text)) for _, text in read(path)] == [10_000_000, 5]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_half_a_file_gives_its_rows_and_then_fails(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    data = lines([str(index**5) for index in range(100_000)])
    packed = {".gz": gzip.compress, ".zst": zstandard.compress}[suffix](data)
    path.write_bytes(packed[: len(packed) // 2])
    rows = read_rows(str(path), "json lines", "text")
    assert len(list(islice(rows, 1000))) == 1000
    with pytest.raises(faults_of_reading(), match="cut off"):
        list(rows)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_damage_is_a_fault_of_reading(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"this is something else altogether")
    with pytest.raises(faults_of_reading()):
        read(tmp_path / name)


def test_a_json_array_is_told_from_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('\n [{"text": "a"}]')
    with pytest.raises(UserError, match="one JSON object per line"):
        read(path)


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=20), max_size=20), st.integers(0, 20))
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str], first: int) -> None:
    path = tmp_path_factory.mktemp("any") / "a.jsonl.zst"
    path.write_bytes(zstandard.compress(lines(texts)))
    assert read(path, first) == list(enumerate(texts))[first:]


BY_DATASETS = """
import json, os, sys
import datasets
name, builder, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
rows = datasets.load_dataset(builder, data_files=[name], split="train", streaming=True, **options)
print(json.dumps([row["text"] for row in rows]), flush=True)
os._exit(0)  # Arrow's threads may abort the interpreter's own end after a streamed Parquet file
"""


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.txt"])
def test_whole_files_are_read_as_datasets_reads_them(tmp_path: Path, name: str) -> None:
    """The oracle: the builders of `datasets` that our reader stands in for (docs/decisions.md)."""
    texts = [f"document {number}: é 三 \u2028 {'x' * number}" for number in range(300)]
    path, builder, options = tmp_path / name, "text", {}
    if name.endswith(".parquet"):
        builder = "parquet"
        pq.write_table(pa.table({"text": texts}), path, row_group_size=70)
    elif name.endswith(".txt"):
        options = {"sample_by": "paragraph"}
        path.write_text("\n\n".join(texts), encoding="utf-8")
    else:
        compress = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
        path.write_bytes(compress(lines(texts)))
    done = subprocess.run(
        [sys.executable, "-c", BY_DATASETS, path, builder, json.dumps(options)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=True,
    )
    theirs = json.loads(done.stdout)
    if "jsonl" in name:
        theirs = [json.loads(line)["text"] for line in theirs]
    assert [text for _, text in read(path)] == theirs == texts
