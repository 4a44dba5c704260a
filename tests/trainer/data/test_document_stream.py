"""The stream of documents: every cursor, every fault, and a Hub that misbehaves (a real server and client process)."""

import gzip
import hashlib
import json
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests.loopback_hub import Fault, LoopbackHub, client_environment, closed_port
from trainer.data.document_stream import DocumentStream, Stopped, open_documents
from trainer.data.sources import DataSource, embedded_source, resolve_source
from trainer.errors import SourceUnreachable, UserError
from trainer.records import Cursor, Document, Origin


def write_lines(path: Path, rows: list[object]) -> Path:
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
    """A folder with four documents in each of five kinds of file, one of them with blank lines, and an empty file."""
    folder = tmp_path / "mixed"
    write_lines(folder / "a.jsonl", [{"text": "a0"}, "", {"text": "a1"}, {"text": "a2"}, "", {"text": "a3"}, ""])
    write_lines(folder / "b.jsonl.gz", [{"text": f"b{index}"} for index in range(4)])
    write_lines(folder / "c.jsonl.zst", [{"text": f"c{index}"} for index in range(4)])
    pq.write_table(pa.table({"text": [f"d{index}" for index in range(4)]}), folder / "d.parquet", row_group_size=3)
    write_lines(folder / "e.jsonl", [])
    (folder / "f.txt").write_text("f0\n\nf1\n\n\nf2\n\nf3")
    return folder


EXPECTED = [f"{file}{index}" for file in "abcdf" for index in range(4)]


def test_a_folder_of_mixed_kinds_is_read_in_order(mixed: Path) -> None:
    assert texts(stream_of(mixed)) == EXPECTED


def test_a_glob(mixed: Path) -> None:
    assert texts(stream_of(f"{mixed}/[bc].jsonl*")) == EXPECTED[4:12]


def test_an_origin_names_the_row_of_the_file(mixed: Path) -> None:
    origins = {document.text: document.origin for document in stream_of(mixed)}
    assert (origins["a3"].shard, origins["a3"].row) == (str(mixed / "a.jsonl"), 5)
    assert (origins["d3"].shard, origins["d3"].row) == (str(mixed / "d.parquet"), 3)
    assert (origins["f3"].shard, origins["f3"].row) == (str(mixed / "f.txt"), 3)


def test_going_on_at_every_cursor_equals_never_having_stopped(mixed: Path) -> None:
    stream = stream_of(mixed, repeat=True)
    whole = list(islice(stream, 50))
    assert texts(iter(whole)) == (EXPECTED * 3)[:50]
    for done in range(1, len(whole)):
        resumed = replace(stream, cursor=whole[done - 1].cursor)
        assert list(islice(resumed, len(whole) - done)) == whole[done:]


def test_iterating_again_begins_again(mixed: Path) -> None:
    stream = stream_of(mixed)
    assert texts(islice(stream, 3)) == texts(islice(stream, 3)) == EXPECTED[:3]


def test_the_cursor_tells_the_epoch(mixed: Path) -> None:
    documents = list(islice(stream_of(mixed, repeat=True), 45))
    epochs = [document.cursor.epoch for document in documents]
    assert epochs == sorted(epochs) and epochs[0] == 0 and epochs[-1] == 2


def test_a_source_without_a_document_ends_even_when_repeated(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", ["", ""])
    assert list(stream_of(tmp_path, repeat=True)) == []


def test_an_epoch_resumed_at_its_very_end_goes_on_with_the_next(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"text": "a0"}])
    stream = stream_of(tmp_path, repeat=True)
    (first,) = islice(stream, 1)
    assert texts(islice(replace(stream, cursor=first.cursor), 2)) == ["a0", "a0"]


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


def test_odd_texts_are_passed_on_and_broken_rows_cost_themselves(tmp_path: Path) -> None:
    rows = [
        {"text": "ok"},
        {"text": None},
        {"text": 7},
        {"text": ""},
        '{"text": "cut',
        {"other": 1},
        [1],
        {"text": "end"},
    ]
    documents = list(stream_of(write_lines(tmp_path / "a.jsonl.zst", list(rows))))
    assert texts(iter(documents)) == ["ok", None, 7, "", None, None, None, "end"]
    faults = [document.fault for document in documents]
    assert faults == [None, None, None, None, "not JSON", "no 'text'", "not an object", None]
    assert [document.origin.row for document in documents] == list(range(8))


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_wrong_text_column_names_those_there_are(tmp_path: Path, name: str) -> None:
    if name == "a.jsonl":
        write_lines(tmp_path / name, ["not JSON", {"content": "x", "id": 1}])
    else:
        pq.write_table(pa.table({"content": ["x"], "id": [1]}), tmp_path / name)
    with pytest.raises(UserError, match=r"no column 'text': it has 'content', 'id'\. .*--text-column"):
        list(stream_of(tmp_path))
    assert texts(stream_of(tmp_path, text_column="content"))[-1] == "x"


def test_what_a_damaged_shard_still_gives_and_then_the_next_one(tmp_path: Path) -> None:
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


def test_data_of_which_nothing_can_be_read_end(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(b"no zstd")
    (document,) = stream_of(tmp_path)
    assert document.fault == "the rest of the shard is damaged (not zstd data)"


def test_a_local_file_that_goes_away_is_out_of_reach(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"text": "a0"}])
    write_lines(tmp_path / "b.jsonl", [{"text": "b0"}])
    documents = iter(stream_of(tmp_path))
    assert next(documents).text == "a0"
    (tmp_path / "b.jsonl").unlink()
    with pytest.raises(SourceUnreachable, match=r"can't read .*b\.jsonl: No such file.*--resume"):
        next(documents)


def test_the_embedded_data_repeat_by_themselves(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "0.jsonl.zst", [{"text": "a", "source": "python-code"}])
    stream = open_documents("python-library", embedded=lambda: library(path), say=print)
    documents = list(islice(stream, 3))
    assert [document.source for document in documents] == ["python-code"] * 3
    assert documents[0].origin.shard == "python-library/0.jsonl.zst"
    with pytest.raises(UserError, match="expected other"):
        open_documents("python-library", embedded=lambda: library(path), say=print, revision="other")


def library(path: Path) -> DataSource:
    return embedded_source([path], "revision")


# ------------------------------------------------------------------------------------------------------------ the Hub

SLIMPAJAMA = "cerebras/SlimPajama-627B"
STAND_IN = "DKYoon/SlimPajama-6B"

CLIENT = """
import hashlib, json, sys, time
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
import trainer.data.document_stream as documents
import trainer.data.hub_file as hub_file
from trainer.data.document_stream import Stopped
from trainer.errors import RunError
from trainer.records import Cursor
from trainer.data.sources import embedded_source
hash_of = lambda text: hashlib.sha256(text.encode()).hexdigest()
library = lambda: embedded_source([Path(sys.argv[1]) / "library" / "0.jsonl.zst"], "revision")
said, events, show = [], [], {}
def open_documents(name, **options):
    options = {"max_stall": 30, "on_event": lambda *event: events.append(event), **options}
    return documents.open_documents(name, embedded=library, say=said.append, **options)
def failure(*arguments, **options):
    since = time.monotonic()
    try:
        list(open_documents(*arguments, **options))
    except (RunError, Stopped) as error:
        return [type(error).__name__, str(error), time.monotonic() - since]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two repositories as SlimPajama and its stand-in lay out their files, and a library."""
    for index in range(2):
        rows = [
            {"text": f"{index}/{row} " + "x" * (row % 90), "meta": {"redpajama_set_name": "RedPajamaC4"}}
            for row in range(2000)
        ]
        write_lines(tmp_path / f"627B/train/chunk1/example_train_{index}.jsonl.zst", list(rows))
    write_lines(tmp_path / "627B/validation/chunk1/example_holdout_0.jsonl.zst", [{"text": "held out"}])
    (tmp_path / "6B/data").mkdir(parents=True)
    table = pa.table(
        {"text": [f"row {row}" for row in range(500)], "meta": [{"redpajama_set_name": "RedPajamaBook"}] * 500}
    )
    pq.write_table(table, tmp_path / "6B/data/train-00000-of-00001.parquet", row_group_size=100)
    write_lines(tmp_path / "library/0.jsonl.zst", [{"text": "embedded"}])
    return tmp_path


@pytest.fixture
def hub(folder: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub({SLIMPAJAMA: folder / "627B", STAND_IN: folder / "6B"}) as hub:
        yield hub


def run_client(endpoint: str, folder: Path, code: str, **environment: str) -> dict[str, object]:
    """What the code put into `show`, with `said` and `events`. Nothing else may reach the terminal."""
    program = CLIENT + code + "\nprint(json.dumps({**show, 'said': said, 'events': events}))"
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        env={**client_environment(endpoint, folder), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    shown: dict[str, object] = json.loads(line)
    return shown


def hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


ALL_OF_627B = [f"{index}/{row} " + "x" * (row % 90) for index in range(2) for row in range(2000)]


def test_slimpajama_from_the_hub(hub: LoopbackHub, folder: Path) -> None:
    shown = run_client(
        hub.endpoint,
        folder,
        """
stream = open_documents("auto")
found = list(stream)
show["source"] = asdict(stream.source)
show["texts"] = [document.text for document in found]
show["part"], show["origin"] = found[7].source, asdict(found[7].origin)
show["resumed"] = all(
    list(islice(replace(stream, cursor=found[done - 1].cursor), 3)) == found[done:done + 3]
    for done in (1, 1999, 2000, 2001, 3998)
)
again = open_documents(stream.source.name, revision=stream.source.revision)
show["same"] = list(again) == found
show["at the end"] = list(open_documents("slimpajama", cursor=found[-1].cursor))
""",
    )
    commit = hub.commit(SLIMPAJAMA)
    source = shown["source"]
    assert isinstance(source, dict)
    assert (source["name"], source["revision"], source["note"]) == (SLIMPAJAMA, commit, "")
    assert source["has_validation"] is True
    assert shown["texts"] == ALL_OF_627B
    assert shown["part"] == "RedPajamaC4"
    shard = f"hf://datasets/{SLIMPAJAMA}@{commit}/train/chunk1/example_train_0.jsonl.zst"
    assert shown["origin"] == {"shard": shard, "row": 7}
    assert shown["resumed"] and shown["same"]
    assert shown["at the end"] == []
    assert shown["said"] == [] and shown["events"] == []


def test_the_stand_in_in_parquet_when_the_first_is_not_there(hub: LoopbackHub, folder: Path) -> None:
    del hub.repositories[SLIMPAJAMA]
    shown = run_client(
        hub.endpoint,
        folder,
        """
stream = open_documents("slimpajama")
found = list(stream)
show["source"] = [stream.source.name, stream.source.revision, stream.source.has_validation, found[0].source]
show["texts"] = [document.text for document in found]
show["resumed"] = list(replace(stream, cursor=found[249].cursor)) == found[250:]
""",
    )
    assert shown["source"] == [STAND_IN, hub.commit(STAND_IN), False, "RedPajamaBook"]
    assert shown["texts"] == [f"row {row}" for row in range(500)]
    assert shown["resumed"]


SHORT_PAUSES = "hub_file.FIRST_PAUSE_SECONDS = 0.02; hub_file.STALL_SECONDS = 1.0\n"


# All of them, in a run of the command: `tests/runs/test_network.py`.
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault("example_train_1", cut_after=1000, times=3), "peer closed connection"),
        pytest.param(Fault("example_train_1", cut_after=0, times=3), "peer closed connection", marks=pytest.mark.full),
        pytest.param(Fault("example_train_1", drop=True, times=3), "disconnected", marks=pytest.mark.full),
        (Fault("example_train_1", status=503, times=3), "the Hub answers 503"),
        pytest.param(Fault("example_train_1", status=404, times=3), "the Hub answers 404", marks=pytest.mark.full),
        (Fault("example_train_1", status=429, times=2, headers={"Retry-After": "1"}), "the Hub answers 429"),
        (Fault("example_train_1", stall_after=2500, stall_seconds=20, times=2), "the Hub does not answer in time"),
        pytest.param(
            Fault("example_train_1", hang_seconds=20, times=2),
            "the Hub does not answer in time",
            marks=pytest.mark.full,
        ),
        pytest.param(Fault("example_train_1", away_seconds=1.0), "disconnected", marks=pytest.mark.full),
        (Fault("example_train_1", spoil=True, times=2), "not zstd data"),
    ],
    ids="cut headers-only drop 503 404 429 stall hang away spoilt".split(),
)
def test_a_fault_of_the_network_loses_nothing(hub: LoopbackHub, folder: Path, fault: Fault, reason: str) -> None:
    times = fault.times
    hub.faults.append(fault)
    shown = run_client(
        hub.endpoint,
        folder,
        SHORT_PAUSES
        + """
since = time.monotonic()
show["texts"] = [document.text for document in open_documents("auto")]
show["seconds"] = time.monotonic() - since
""",
    )
    assert fault.times == 0
    assert shown["texts"] == ALL_OF_627B
    events = shown["events"]
    assert isinstance(events, list)
    assert {kind for kind, _ in events} == {"retry"}
    # Each try is told, and none is made behind our back. While the Hub is away there are several.
    assert len(events) == times or (fault.away_seconds and len(events) > times)
    for _, detail in events:
        assert "example_train_1.jsonl.zst row 0: " in detail and ": trying again in" not in detail
        assert re.search(r"; trying again in \d s$", detail) and "\n" not in detail
    assert reason in events[0][1]
    if fault.headers:
        assert float(str(shown["seconds"])) > 2  # told to stay away for a second, twice
    if fault.cut_after:  # what came before the cut is not asked for again
        size = (folder / "627B/train/chunk1/example_train_1.jsonl.zst").stat().st_size
        assert hub.bytes_sent("example_train_1") == size


@pytest.mark.parametrize("kind", ["jsonl.zst", "parquet"])
def test_a_shard_that_breaks_in_its_middle_goes_on_behind_the_last_document(tmp_path: Path, kind: str) -> None:
    rng = random.Random(7)
    # Twelve megabytes once compressed: four are read at a time.
    expected = [f"{row} {rng.randbytes(2000).hex()}" for row in range(6000)]
    path = tmp_path / f"big/train.{kind}"
    if kind == "parquet":
        path.parent.mkdir()
        pq.write_table(pa.table({"text": expected}), path, row_group_size=500, use_dictionary=False)
    else:
        write_lines(path, [{"text": text} for text in expected])
    with LoopbackHub({"someone/big": tmp_path / "big"}) as hub:
        hub.faults.append(Fault(path.name, begins=range(4_000_000, 9_000_000), cut_after=300_000, times=5))
        shown = run_client(
            hub.endpoint,
            tmp_path,
            SHORT_PAUSES
            + """
found = []
for document in open_documents("someone/big", max_stall=1.5):
    found.append(document)
    if len(found) == 3:
        time.sleep(2)  # a slow reader is no stalled source
show["texts"] = [hash_of(document.text) for document in found]
show["rows"] = [document.origin.row for document in found]
""",
        )
        assert hub.faults[0].times == 0
        assert hub.bytes_sent(path.name) < 1.5 * path.stat().st_size + (4 << 20)  # and what `open_documents` tries
    assert shown["texts"] == [hash_of(text) for text in expected]
    assert shown["rows"] == list(range(6000))
    events = shown["events"]
    assert isinstance(events, list)
    assert len(events) == 5 and all(kind == "retry" and " row 0: " not in detail for kind, detail in events)


def test_answers_that_always_break_off_still_get_through(hub: LoopbackHub, folder: Path) -> None:
    """Three hundred bytes an answer, more tries than any limit on tries: there is only one on time without progress."""
    hub.faults.append(Fault("example_train_1", cut_after=300, times=10**6))
    shown = run_client(
        hub.endpoint,
        folder,
        SHORT_PAUSES
        + """
hub_file.LONGEST_PAUSE_SECONDS = 0.02
show["texts"] = [document.text for document in open_documents("auto")]
""",
    )
    assert shown["texts"] == ALL_OF_627B
    events = shown["events"]
    assert isinstance(events, list) and len(events) > 15


def test_a_shard_that_is_damaged_on_the_hub_is_read_three_times_and_then_passed_by(tmp_path: Path) -> None:
    rows: list[object] = [{"text": f"{row} {random.Random(row).randbytes(100).hex()}"} for row in range(8000)]
    damaged = write_lines(tmp_path / "data/train-0.jsonl.zst", rows)
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    damaged.write_bytes(data)
    write_lines(tmp_path / "data/train-1.jsonl.zst", [{"text": "good"}])
    write_lines(tmp_path / "data/train-2.jsonl", [])
    with LoopbackHub({"someone/data": tmp_path / "data"}) as hub:
        shown = run_client(
            hub.endpoint,
            tmp_path,
            SHORT_PAUSES
            + """
stream = open_documents("someone/data")
found = list(stream)
show["read"] = [document.text for document in found if document.fault is None]
show["faults"] = [[document.origin.row, document.fault] for document in found if document.fault]
retries = list(events)
show["again"] = list(stream) == found
show["from the middle"] = all(list(stream.at(found[n - 1].cursor)) == found[n:] for n in (5, len(found) - 2))
""",
        )
    read, faults, events = shown["read"], shown["faults"], shown["events"]
    assert isinstance(read, list) and isinstance(faults, list) and isinstance(events, list)
    assert 3000 < len(read) < 5000 and read[-1] == "good"
    assert [text.split()[0] for text in read[:-1]] == [str(row) for row in range(len(read) - 1)]
    ((row, fault),) = faults
    assert row == len(read) - 1 and fault.startswith("the rest of the shard is damaged (zstd")
    assert len(events) == 2 * 4 and all(f"train-0.jsonl.zst row {row}: zstd" in detail for _, detail in events)
    assert shown["again"] and shown["from the middle"]


def test_a_hub_that_asks_for_more_time_than_there_is_gets_what_there_is(hub: LoopbackHub, folder: Path) -> None:
    hub.faults.append(Fault("example_train_1", status=429, headers={"Retry-After": "3600"}, times=10**6))
    shown = run_client(hub.endpoint, folder, f'show["error"] = failure("{SLIMPAJAMA}", max_stall=2)')
    error, events = shown["error"], shown["events"]
    assert isinstance(error, list) and isinstance(events, list)
    assert error[0] == "SourceUnreachable" and "the Hub answers 429" in error[1] and 2 <= error[2] < 15
    assert [detail[-20:] for _, detail in events] == ["; trying again in 2 s"[-20:]]


def test_the_names_are_not_resolved_for_a_while(hub: LoopbackHub, folder: Path) -> None:
    hub.faults.append(Fault("example_train_1", drop=True))
    shown = run_client(
        hub.endpoint,
        folder,
        SHORT_PAUSES
        + """
import socket
resolve, failures = socket.getaddrinfo, []
def fails(*arguments, **options):
    if events and len(failures) < 3:
        failures.append(arguments)
        raise socket.gaierror(-3, "Temporary failure in name resolution")
    return resolve(*arguments, **options)
socket.getaddrinfo = fails
show["texts"] = [document.text for document in open_documents("auto")]
show["failures"] = len(failures)
""",
    )
    assert shown["texts"] == ALL_OF_627B and shown["failures"] == 3
    events = shown["events"]
    assert isinstance(events, list) and len(events) == 4
    assert all("Temporary failure in name resolution" in detail for _, detail in events[1:])


def test_a_run_stays_on_its_commit_until_that_is_gone(hub: LoopbackHub, folder: Path) -> None:
    other = folder / "other"
    write_lines(other / "train/chunk1/example_train_0.jsonl.zst", [{"text": "another commit"}])
    program = """
stream = open_documents("auto")
documents_of_it = iter(stream)
first = next(documents_of_it)
(Path(sys.argv[1]) / "ready").touch()
while not (Path(sys.argv[1]) / "moved").exists():
    time.sleep(0.02)
show["texts"] = []
try:
    show["texts"] = [first.text] + [document.text for document in documents_of_it]
except RunError as error:
    show["error"] = [type(error).__name__, str(error)]
"""

    def move(is_forgotten: bool) -> None:
        while not (folder / "ready").exists():
            time.sleep(0.02)
        hub.push(SLIMPAJAMA, other)
        if is_forgotten:
            hub.forget_commits()
        (folder / "moved").touch()

    commit, whole = hub.commit(SLIMPAJAMA), hub.repositories[SLIMPAJAMA]
    for is_forgotten in (False, True):
        hub.repositories[SLIMPAJAMA] = whole
        for name in ("ready", "moved"):
            (folder / name).unlink(missing_ok=True)
        mover = threading.Thread(target=move, args=(is_forgotten,))
        mover.start()
        shown = run_client(hub.endpoint, folder, SHORT_PAUSES + program)
        mover.join()
        if not is_forgotten:
            assert shown["texts"] == ALL_OF_627B and shown["events"] == []
    kind, line = shown["error"]  # type: ignore[misc]
    assert kind == "SourceUnreachable"
    assert line.startswith(f"the Hub no longer has commit {commit[:12]} of {SLIMPAJAMA}") and "\n" not in line


def test_names_that_need_quoting(tmp_path: Path) -> None:
    write_lines(tmp_path / "data/train/a + b #1 100%.jsonl", [{"text": "read"}])
    with LoopbackHub({"someone/data": tmp_path / "data"}) as hub:
        shown = run_client(hub.endpoint, tmp_path, "show['texts'] = [d.text for d in open_documents('someone/data')]")
    assert shown["texts"] == ["read"]


@pytest.mark.parametrize("kind", [pytest.param("jsonl.zst", marks=pytest.mark.full), "parquet"])
def test_samples_stop_within_a_second_while_a_request_hangs(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"data/train.{kind}"
    expected = [f"{row} {random.Random(row).randbytes(2000).hex()}" for row in range(3000)]
    if kind == "parquet":
        path.parent.mkdir()
        pq.write_table(pa.table({"text": expected}), path, row_group_size=100, use_dictionary=False)
    else:
        write_lines(path, [{"text": text} for text in expected])
    with LoopbackHub({"someone/data": tmp_path / "data"}) as hub:
        hub.faults.append(
            Fault(path.name, begins=range(3_000_000, 9_000_000), stall_after=1000, stall_seconds=30, times=10)
        )
        shown = run_client(
            hub.endpoint,
            tmp_path,
            """
from trainer.data.sample_stream import SampleStream
from trainer.data.tokenizer import Tokenizer
stop_at = [1e18]
should_stop = lambda: time.monotonic() > stop_at[0]
samples = SampleStream(
    replace(open_documents("someone/data"), should_stop=should_stop),
    Tokenizer.train(["some text"] * 100, 300), 32, hold_out=False, should_stop=should_stop,
)
count = 0
for sample in samples:
    count += 1
    if samples._queue.empty():  # all that there is has been handed out
        time.sleep(0.3)
        if samples._queue.empty():
            stop_at[0] = time.monotonic() + 0.5
show["count"], show["late"] = count, time.monotonic() - stop_at[0]
samples.close()
""",
        )
    assert 100 < int(str(shown["count"])) < 3000
    assert 0 <= float(str(shown["late"])) < 1


def test_failures_on_the_hub_are_one_line_each(hub: LoopbackHub, folder: Path) -> None:
    shown = run_client(
        hub.endpoint,
        folder,
        f"""
show["missing"] = failure("nobody/nothing")
show["split"] = failure("{SLIMPAJAMA}", split="test")
show["revision"] = failure("{SLIMPAJAMA}", revision="nope")
show["config"] = failure("{SLIMPAJAMA}", config="nope")
show["column"] = failure("{STAND_IN}", text_column="content")
""",
    )
    kinds = {name: error[0] for name, error in shown.items() if isinstance(error, list) and error}
    lines = {name: error[1] for name, error in shown.items() if isinstance(error, list) and error}
    assert kinds == {
        "missing": "SourceUnreachable",
        **dict.fromkeys(["split", "revision", "config", "column"], "UserError"),
    }
    assert lines["missing"].startswith("nobody/nothing out of reach (not found on the Hub, or not public).")
    assert "has no split 'test': it has train, validation" in lines["split"]
    assert "has no revision 'nope'" in lines["revision"]
    assert "'nope' not found. Available: ['default']" in lines["config"]
    assert "no column 'content': it has 'text', 'meta'" in lines["column"]
    assert not any("\n" in line for line in lines.values())


def test_a_source_that_stays_away_is_given_up_or_left_when_asked_to(hub: LoopbackHub, folder: Path) -> None:
    hub.faults.append(Fault("example_train_1", status=404, times=10**6))
    shown = run_client(
        hub.endpoint,
        folder,
        f"""
show["error"] = failure("{SLIMPAJAMA}", max_stall=1.5)
events.clear()
since = time.monotonic()
show["left"] = len(list(open_documents("{SLIMPAJAMA}", max_stall=600, should_stop=lambda: len(events) == 2)))
show["seconds"] = time.monotonic() - since
""",
    )
    error = shown["error"]
    assert isinstance(error, list)
    assert error[0] == "SourceUnreachable"
    assert error[1].startswith(f"{SLIMPAJAMA} gave no document for ")
    assert "--resume" in error[1]
    assert 1 < error[2] < 15
    assert shown["left"] == 2000
    assert float(str(shown["seconds"])) < 15


def test_without_a_network_the_default_says_what_it_uses_instead(folder: Path) -> None:
    shown = run_client(
        closed_port(),
        folder,
        f"""
since = time.monotonic()
stream = open_documents("auto")
show["source"] = [stream.source.name, stream.source.note, stream.repeat]
show["texts"] = [document.text for document in islice(stream, 2)]
show["seconds"] = time.monotonic() - since
show["insisted"] = failure("slimpajama")
show["named"] = failure("{STAND_IN}")
""",
    )
    said, insisted, named = shown["said"], shown["insisted"], shown["named"]
    assert isinstance(said, list) and isinstance(insisted, list) and isinstance(named, list)
    (line,) = said
    reason = line.removeprefix("SlimPajama out of reach (").partition(").")[0]
    assert "no connection" in reason
    assert line == (
        f"SlimPajama out of reach ({reason}). Using the embedded Python library. To insist: --dataset slimpajama"
    )
    assert shown["source"] == ["python-library", f"SlimPajama out of reach ({reason})", True]
    assert shown["texts"] == ["embedded", "embedded"]
    assert float(str(shown["seconds"])) < 10
    assert insisted[0] == named[0] == "SourceUnreachable"
    assert insisted[1].startswith("SlimPajama out of reach (no connection")
    assert named[1].startswith(f"{STAND_IN} out of reach (no connection")


def test_offline_mode_is_the_reason(folder: Path) -> None:
    shown = run_client(closed_port(), folder, 'open_documents("auto")', HF_HUB_OFFLINE="1")
    said = shown["said"]
    assert isinstance(said, list)
    assert said[0].startswith("SlimPajama out of reach (HF_HUB_OFFLINE is set).")


@pytest.mark.full
def test_a_hub_that_hangs_leaves_time_for_the_second_and_stops_at_once(hub: LoopbackHub, folder: Path) -> None:
    hub.faults.append(Fault(f"/api/datasets/{SLIMPAJAMA}", hang_seconds=60, times=10**6))
    shown = run_client(
        hub.endpoint,
        folder,
        """
import datasets  # its import takes a part of the time, which is short here
documents.FIRST_DOCUMENT_SECONDS = 20.0
stream = open_documents("auto")
show["source"] = stream.source.name
stop_at = time.monotonic() + 0.5
show["stopped"] = failure("auto", should_stop=lambda: time.monotonic() > stop_at)
""",
    )
    stopped = shown["stopped"]
    assert isinstance(stopped, list)
    assert shown["source"] == STAND_IN
    assert stopped[0] == Stopped.__name__
    assert 0.5 <= stopped[2] < 5
