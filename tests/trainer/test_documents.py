"""The stream of documents: every cursor, every fault, and a Hub that misbehaves (a real server and client process)."""

import gzip
import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests.loopback_hub import Fault, LoopbackHub, client_environment, closed_port
from trainer.documents import DocumentStream, Stopped, open_documents
from trainer.errors import UserError
from trainer.records import Document
from trainer.sources import DataSource, embedded_source, resolve_source


def write_lines(path: Path, rows: list[object]) -> Path:
    data = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()
    compress: Callable[[bytes], bytes] = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(compress(data))
    return path


def stream_of(path: Path | str, **options: object) -> DocumentStream:
    return DocumentStream(source=resolve_source(str(path)), **options)  # type: ignore[arg-type]


def texts(documents: Iterator[Document] | DocumentStream) -> list[object]:
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


def test_a_local_file_that_is_cut_off_is_said_after_its_documents(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl.zst", [{"text": str(index**5)} for index in range(50_000)])
    path.write_bytes(path.read_bytes()[:-100])
    documents = iter(stream_of(path))
    assert len(list(islice(documents, 100))) == 100
    with pytest.raises(UserError, match=r"can't read .*a\.jsonl\.zst at row \d+: cut off"):
        list(documents)


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
import trainer.documents as documents
from trainer.documents import Stopped
from trainer.errors import RunError
from trainer.records import Cursor
from trainer.sources import embedded_source
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


@pytest.mark.parametrize(
    "fault",
    [
        # The Hub's own client gives up after six tries; its pauses are taken out here.
        Fault("example_train_1", cut_after=2500, times=7),
        Fault("example_train_1", status=503, times=7),
        Fault("example_train_1", status=404, times=1),  # nobody below retries this one
    ],
    ids=["cut", "503", "404"],
)
def test_a_broken_connection_loses_nothing(hub: LoopbackHub, folder: Path, fault: Fault) -> None:
    hub.faults.append(fault)
    shown = run_client(
        hub.endpoint,
        folder,
        """
time.sleep = lambda seconds: None
show["texts"] = [document.text for document in open_documents("auto")]
""",
    )
    assert fault.times == 0
    assert shown["texts"] == ALL_OF_627B
    events = shown["events"]
    assert isinstance(events, list)
    assert [kind for kind, _ in events] == ["retry"]
    assert "example_train_1.jsonl.zst row 0: " in events[0][1]
    assert events[0][1].endswith("trying again in 1 s")
    assert "\n" not in events[0][1]


@pytest.mark.parametrize("kind", ["jsonl.zst", "parquet"])
def test_a_shard_that_breaks_in_its_middle_goes_on_behind_the_last_document(tmp_path: Path, kind: str) -> None:
    rng = random.Random(7)
    # Twelve megabytes once compressed: the client reads five at a time.
    expected = [f"{row} {rng.randbytes(2000).hex()}" for row in range(6000)]
    path = tmp_path / f"big/train.{kind}"
    if kind == "parquet":
        path.parent.mkdir()
        pq.write_table(pa.table({"text": expected}), path, row_group_size=500, use_dictionary=False)
    else:
        write_lines(path, [{"text": text} for text in expected])
    with LoopbackHub({"someone/big": tmp_path / "big"}) as hub:
        hub.faults.append(Fault(path.name, begins=range(4_000_000, 9_000_000), cut_after=50_000, times=13))
        shown = run_client(
            hub.endpoint,
            tmp_path,
            """
sleep, time.sleep = time.sleep, lambda seconds: None
documents.LONGEST_PAUSE_SECONDS = 0.1
found = []
for document in open_documents("someone/big", max_stall=1.5):
    found.append(document)
    if len(found) == 3:
        sleep(2)  # a slow reader is no stalled source
show["texts"] = [hash_of(document.text) for document in found]
show["rows"] = [document.origin.row for document in found]
""",
        )
        assert hub.faults[0].times == 0
    assert shown["texts"] == [hash_of(text) for text in expected]
    assert shown["rows"] == list(range(6000))
    events = shown["events"]
    assert isinstance(events, list)
    assert events and all(kind == "retry" and " row 0: " not in detail for kind, detail in events)


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
