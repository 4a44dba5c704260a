"""The stream of documents from local files: every cursor and every fault (from the Hub: test_hub_file.py)."""

import gzip
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from trainer.data.document_stream import DocumentStream, open_documents
from trainer.data.sources import embedded_source, resolve_source
from trainer.errors import UserError
from trainer.records import Cursor, Document, Origin


def write_lines(path: Path, rows: Sequence[object]) -> Path:
    data = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()
    compress: Callable[[bytes], bytes] = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(compress(data))
    return path


def stream_of(path: Path | str, **options: object) -> DocumentStream:
    return DocumentStream(source=resolve_source(str(path)), **options)  # type: ignore[arg-type]


def texts(documents: Iterable[Document]) -> list[object]:
    return [document.text for document in documents]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Four documents in each of five kinds of file, one of them with blank lines, and an empty file."""
    folder = tmp_path / "mixed"
    write_lines(folder / "a.jsonl", [{"text": "a0"}, "", {"text": "a1"}, {"text": "a2"}, "", {"text": "a3"}, ""])
    write_lines(folder / "b.jsonl.gz", [{"text": f"b{index}"} for index in range(4)])
    write_lines(folder / "c.jsonl.zst", [{"text": f"c{index}"} for index in range(4)])
    pq.write_table(pa.table({"text": [f"d{index}" for index in range(4)]}), folder / "d.parquet", row_group_size=3)
    write_lines(folder / "e.jsonl", [])
    (folder / "f.txt").write_text("f0\n\nf1\n\n\nf2\n\nf3")
    return folder


EXPECTED = [f"{file}{index}" for file in "abcdf" for index in range(4)]


def test_a_folder_of_mixed_kinds_is_read_in_order_and_an_origin_names_the_row(mixed: Path) -> None:
    stream = stream_of(mixed)
    assert texts(islice(stream, 3)) == EXPECTED[:3]
    assert texts(stream) == EXPECTED, "iterating again starts again"
    assert texts(stream_of(f"{mixed}/[bc].jsonl*")) == EXPECTED[4:12]
    origins = {document.text: document.origin for document in stream}
    assert (origins["a3"].shard, origins["a3"].row) == (str(mixed / "a.jsonl"), 5)
    assert (origins["d3"].shard, origins["d3"].row) == (str(mixed / "d.parquet"), 3)
    assert (origins["f3"].shard, origins["f3"].row) == (str(mixed / "f.txt"), 3)


def test_resuming_at_any_cursor_equals_an_uninterrupted_stream(mixed: Path) -> None:
    stream = stream_of(mixed, repeat=True)
    whole = list(islice(stream, 50))
    assert texts(whole) == (EXPECTED * 3)[:50]
    epochs = [document.cursor.epoch for document in whole]
    assert epochs == sorted(epochs) and epochs[0] == 0 and epochs[-1] == 2
    for done in range(1, len(whole)):
        resumed = replace(stream, cursor=whole[done - 1].cursor)
        assert list(islice(resumed, len(whole) - done)) == whole[done:]


def test_a_source_without_a_document_ends_even_when_repeated(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", ["", ""])
    assert list(stream_of(tmp_path, repeat=True)) == []


def test_the_source_of_a_row(tmp_path: Path) -> None:
    rows: list[object] = [
        {"text": "", "meta": {"redpajama_set_name": "RedPajamaC4"}},
        {"text": "", "meta": '{"redpajama_set_name": "RedPajamaBook"}'},
        {"text": "", "meta": "{redpajama_set_name", "source": "python-docs"},
        {"text": "", "meta": {"redpajama_set_name": None}, "source": 7},
    ]
    path = write_lines(tmp_path / "a.jsonl", rows)
    found = [document.source for document in stream_of(path)]
    assert found == ["RedPajamaC4", "RedPajamaBook", "python-docs", str(path)]


def test_odd_texts_are_kept_and_a_broken_row_costs_only_itself(tmp_path: Path) -> None:
    odd = [{"text": "ok"}, {"text": None}, {"text": 7}, {"text": ""}]
    rows = [*odd, '{"text": "cut', {"other": 1}, [1], {"text": "end"}]
    documents = list(stream_of(write_lines(tmp_path / "a.jsonl.zst", rows)))
    assert texts(documents) == ["ok", None, 7, "", None, None, None, "end"]
    faults = [document.fault for document in documents]
    assert faults == [None, None, None, None, "not JSON", "no 'text'", "not an object", None]
    assert [document.origin.row for document in documents] == list(range(8))


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_wrong_text_column_is_refused_naming_the_columns(tmp_path: Path, name: str) -> None:
    if name == "a.jsonl":
        write_lines(tmp_path / name, ["not JSON", {"content": "x", "id": 1}])
    else:
        pq.write_table(pa.table({"content": ["x"], "id": [1]}), tmp_path / name)
    with pytest.raises(UserError, match=r"no column 'text': it has 'content', 'id'\. .*--text-column"):
        list(stream_of(tmp_path))
    assert texts(stream_of(tmp_path, text_column="content"))[-1] == "x"


def test_a_damaged_shard_gives_what_can_be_read_and_then_the_next_one_follows(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    path = write_lines(folder / "a.jsonl.zst", [{"text": str(index**5)} for index in range(50_000)])
    path.write_bytes(path.read_bytes()[:-100])
    write_lines(folder / "b.jsonl.gz", [{"text": "b0"}])
    (folder / "c.parquet").write_bytes(b"PAR1 and nothing more PAR1")
    write_lines(folder / "d.jsonl", [{"text": "d0"}])
    stream = stream_of(folder, repeat=True)
    documents = list(islice(stream, 110_000))
    faults = [(place, document) for place, document in enumerate(documents) if document.fault]
    first, second = faults[0][1], faults[1][1]
    read = faults[0][0]
    assert 40_000 < read < 50_000 and texts(documents[:read]) == [str(index**5) for index in range(read)]
    assert first.origin == Origin(str(path), read) and first.cursor == Cursor(0, 1)
    assert first.fault == "the rest of the shard is damaged (cut off in the middle of its compressed data)"
    assert second.origin.row == 0 and second.cursor == Cursor(0, 3) and str(second.fault).startswith("the rest of")
    assert texts(documents[read + 1 : read + 4]) == ["b0", None, "d0"]
    assert [place for place, _ in faults[2:4]] == [read + 4 + read, read + 4 + read + 2]  # in every epoch
    for done in (read, read + 1, read + 2, read + 3, read + 4):
        resumed = list(islice(stream.at(documents[done - 1].cursor), 10))
        assert resumed == documents[done : done + 10]


def test_the_embedded_data_repeat_by_default(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "0.jsonl.zst", [{"text": "a", "source": "python-code"}])
    library = embedded_source([path], "revision")
    stream = open_documents("python-library", embedded=lambda: library, say=print)
    documents = list(islice(stream, 3))
    assert [document.source for document in documents] == ["python-code"] * 3
    assert documents[0].origin.shard == "python-library/0.jsonl.zst"
    with pytest.raises(UserError, match="expected other"):
        open_documents("python-library", embedded=lambda: library, say=print, revision="other")
