"""Documents from a Hub that misbehaves: a real server, and a client in a process of its own."""

import hashlib
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.loopback_hub import Fault, LoopbackHub, client_environment, closed_port
from tests.trainer.data.test_document_stream import write_lines

SLIMPAJAMA = "cerebras/SlimPajama-627B"
STAND_IN = "DKYoon/SlimPajama-6B"

CLIENT = """
import hashlib, json, sys, time
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
import trainer.data.document_stream as documents
from trainer.data.document_stream import Stopped
from trainer.data.hub_file import RetryTiming
from trainer.data.sources import embedded_source
from trainer.errors import RunError
from trainer.records import Cursor
hash_of = lambda text: hashlib.sha256(text.encode()).hexdigest()
library = lambda: embedded_source([Path(sys.argv[1]) / "library" / "0.jsonl.zst"], "revision")
quick = RetryTiming(first_pause=0.02, stall=1.0)
said, events, show = [], [], {}
def open_documents(name, **options):
    options = {"max_stall": 30, "timing": quick, "on_event": lambda *event: events.append(event), **options}
    return documents.open_documents(name, embedded=library, say=said.append, **options)
def failure(*arguments, **options):
    since = time.monotonic()
    try:
        list(open_documents(*arguments, **options))
    except (RunError, Stopped) as error:
        return [type(error).__name__, str(error), time.monotonic() - since]
"""

Client = Callable[[str], dict[str, Any]]


def run_client(endpoint: str, folder: Path, code: str, **environment: str) -> dict[str, Any]:
    """Return what the code puts into `show`, with `said` and `events`. Nothing else may reach the terminal."""
    program = CLIENT + code + "\nprint(json.dumps({**show, 'said': said, 'events': events}))"
    command = [sys.executable, "-c", program, str(folder)]
    environment = {**client_environment(endpoint, folder), **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    (line,) = done.stdout.splitlines()
    shown: dict[str, Any] = json.loads(line)
    return shown


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two repositories with files laid out as in SlimPajama and its stand-in, and a library."""
    meta = {"redpajama_set_name": "RedPajamaC4"}
    for index in range(2):
        rows = [{"text": f"{index}/{row} " + "x" * (row % 90), "meta": meta} for row in range(2000)]
        write_lines(tmp_path / f"627B/train/chunk1/example_train_{index}.jsonl.zst", rows)
    write_lines(tmp_path / "627B/validation/chunk1/example_holdout_0.jsonl.zst", [{"text": "held out"}])
    (tmp_path / "6B/data").mkdir(parents=True)
    table = {"text": [f"row {row}" for row in range(500)], "meta": [{"redpajama_set_name": "RedPajamaBook"}] * 500}
    pq.write_table(pa.table(table), tmp_path / "6B/data/train-00000-of-00001.parquet", row_group_size=100)
    write_lines(tmp_path / "library/0.jsonl.zst", [{"text": "embedded"}])
    return tmp_path


@pytest.fixture
def hub(folder: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub({SLIMPAJAMA: folder / "627B", STAND_IN: folder / "6B"}) as hub:
        yield hub


def client_of(hub: LoopbackHub, folder: Path) -> Client:
    return lambda code: run_client(hub.endpoint, folder, code)


@pytest.fixture
def client(hub: LoopbackHub, folder: Path) -> Client:
    return client_of(hub, folder)


ALL_OF_627B = [f"{index}/{row} " + "x" * (row % 90) for index in range(2) for row in range(2000)]
ALL_TEXTS = "\nshow['texts'] = [document.text for document in open_documents('auto')]"


def test_slimpajama_from_the_hub(hub: LoopbackHub, client: Client) -> None:
    shown = client("""
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
""")
    commit, source = hub.commit(SLIMPAJAMA), shown["source"]
    assert (source["name"], source["revision"], source["note"]) == (SLIMPAJAMA, commit, "")
    assert source["has_validation"] is True
    assert (shown["texts"], shown["part"]) == (ALL_OF_627B, "RedPajamaC4")
    shard = f"hf://datasets/{SLIMPAJAMA}@{commit}/train/chunk1/example_train_0.jsonl.zst"
    assert shown["origin"] == {"shard": shard, "row": 7}
    assert shown["resumed"] and shown["same"]
    assert shown["at the end"] == shown["said"] == shown["events"] == []


def test_the_stand_in_is_used_if_the_first_dataset_is_missing(hub: LoopbackHub, client: Client) -> None:
    del hub.repositories[SLIMPAJAMA]
    shown = client("""
stream = open_documents("slimpajama")
found = list(stream)
show["source"] = [stream.source.name, stream.source.revision, stream.source.has_validation, found[0].source]
show["texts"] = [document.text for document in found]
show["resumed"] = list(replace(stream, cursor=found[249].cursor)) == found[250:]
""")
    assert shown["source"] == [STAND_IN, hub.commit(STAND_IN), False, "RedPajamaBook"]
    assert shown["texts"] == [f"row {row}" for row in range(500)]
    assert shown["resumed"]


# `tests/runs/test_network.py` runs the command against every kind of fault.
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault("example_train_1", cut_after=1000, times=3), "peer closed connection"),
        (Fault("example_train_1", status=429, times=2, headers={"Retry-After": "1"}), "responded with status 429"),
        (Fault("example_train_1", spoil=True, times=2), "not zstd data"),
    ],
    ids="cut 429 corrupted".split(),
)
def test_a_network_fault_loses_nothing(hub: LoopbackHub, client: Client, fault: Fault, reason: str) -> None:
    times = fault.times
    hub.faults.append(fault)
    shown = client(f"since = time.monotonic(){ALL_TEXTS}\nshow['seconds'] = time.monotonic() - since")
    assert fault.times == 0
    assert shown["texts"] == ALL_OF_627B
    assert [kind for kind, _ in shown["events"]] == ["retry"] * times, "every retry is reported"
    for _, detail in shown["events"]:
        assert "example_train_1.jsonl.zst row 0: " in detail and ": retrying in" not in detail
        assert re.search(r"; retrying in \d s$", detail) and "\n" not in detail
    assert reason in shown["events"][0][1]
    if fault.headers:
        assert shown["seconds"] > 2, "the Hub asked for a pause of one second, twice"
    if fault.cut_after:
        size = (hub.repositories[SLIMPAJAMA] / "train/chunk1/example_train_1.jsonl.zst").stat().st_size
        assert hub.bytes_sent("example_train_1") == size, "bytes before the cut are not requested again"


@pytest.mark.parametrize("kind", ["jsonl.zst", pytest.param("parquet", marks=pytest.mark.full)])
def test_a_shard_that_breaks_in_the_middle_continues_after_the_last_document(tmp_path: Path, kind: str) -> None:
    path, generator = tmp_path / f"big/train.{kind}", random.Random(7)
    # Twelve megabytes compressed; requests are four megabytes each.
    expected = [f"{row} {generator.randbytes(2000).hex()}" for row in range(6000)]
    if kind == "parquet":
        path.parent.mkdir()
        pq.write_table(pa.table({"text": expected}), path, row_group_size=500, use_dictionary=False)
    else:
        write_lines(path, [{"text": text} for text in expected])
    with LoopbackHub({"someone/big": tmp_path / "big"}) as hub:
        hub.faults.append(Fault(path.name, begins=range(4_000_000, 9_000_000), cut_after=300_000, times=5))
        shown = client_of(hub, tmp_path)("""
found = []
for document in open_documents("someone/big", max_stall=1.5):
    found.append(document)
    if len(found) == 3:
        time.sleep(2)  # a slow reader is not a stalled source
show["texts"] = [hash_of(document.text) for document in found]
show["rows"] = [document.origin.row for document in found]
""")
        assert hub.faults[0].times == 0
        # `open_documents` itself reads one block to test the connection.
        assert hub.bytes_sent(path.name) < 1.5 * path.stat().st_size + (4 << 20)
    assert shown["texts"] == [hashlib.sha256(text.encode()).hexdigest() for text in expected]
    assert shown["rows"] == list(range(6000))
    assert len(shown["events"]) == 5
    assert all(kind == "retry" and " row 0: " not in detail for kind, detail in shown["events"])


def test_responses_that_always_break_off_still_deliver_everything(hub: LoopbackHub, client: Client) -> None:
    """300 bytes per response need more retries than any limit on retries: only time without progress is limited."""
    hub.faults.append(Fault("example_train_1", cut_after=300, times=10**6))
    shown = client("quick = replace(quick, longest_pause=0.02)" + ALL_TEXTS)
    assert shown["texts"] == ALL_OF_627B
    assert len(shown["events"]) > 15


def test_a_damaged_shard_on_the_hub_is_read_three_times_and_then_skipped(tmp_path: Path) -> None:
    rows: list[object] = [{"text": f"{row} {random.Random(row).randbytes(100).hex()}"} for row in range(8000)]
    damaged = write_lines(tmp_path / "data/train-0.jsonl.zst", rows)
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    damaged.write_bytes(data)
    write_lines(tmp_path / "data/train-1 a + b #1 100%.jsonl.zst", [{"text": "good"}])  # a name that needs quoting
    write_lines(tmp_path / "data/train-2.jsonl", [])
    with LoopbackHub({"someone/data": tmp_path / "data"}) as hub:
        shown = client_of(hub, tmp_path)("""
stream = open_documents("someone/data")
found = list(stream)
show["read"] = [document.text for document in found if document.fault is None]
show["faults"] = [[document.origin.row, document.fault] for document in found if document.fault]
show["again"] = list(stream) == found
show["from the middle"] = all(list(stream.at(found[n - 1].cursor)) == found[n:] for n in (5, len(found) - 2))
""")
    read, events, ((row, fault),) = shown["read"], shown["events"], shown["faults"]
    assert 3000 < len(read) < 5000 and read[-1] == "good"
    assert [text.split()[0] for text in read[:-1]] == [str(row) for row in range(len(read) - 1)]
    assert row == len(read) - 1 and fault.startswith("the rest of the shard is damaged (zstd")
    assert len(events) == 2 * 4 and all(f"train-0.jsonl.zst row {row}: zstd" in detail for _, detail in events)
    assert shown["again"] and shown["from the middle"]


def test_a_pause_that_the_hub_asks_for_is_cut_to_the_time_that_is_left(hub: LoopbackHub, client: Client) -> None:
    hub.faults.append(Fault("example_train_1", status=429, headers={"Retry-After": "3600"}, times=10**6))
    shown = client(f'show["error"] = failure("{SLIMPAJAMA}", max_stall=2)')
    kind, line, seconds = shown["error"]
    assert kind == "SourceUnreachable" and "the Hub responded with status 429" in line and 2 <= seconds < 15
    (event,) = shown["events"]
    assert event[1].endswith("; retrying in 2 s")


def test_a_commit_that_the_hub_no_longer_has(hub: LoopbackHub, client: Client, folder: Path) -> None:
    write_lines(folder / "other/train/chunk1/example_train_0.jsonl.zst", [{"text": "another commit"}])
    commit = hub.commit(SLIMPAJAMA)

    def squash() -> None:
        hub.push(SLIMPAJAMA, folder / "other")
        hub.forget_commits()

    hub.faults.append(Fault("example_train_1", drop=True, action=squash))
    kind, line, _ = client(f'show["error"] = failure("{SLIMPAJAMA}")')["error"]
    assert kind == "SourceUnreachable"
    assert line.startswith(f"the Hub no longer has commit {commit[:12]} of {SLIMPAJAMA}") and "\n" not in line


def test_failures_on_the_hub_are_one_line_each(client: Client) -> None:
    shown = client(f"""
show["missing"] = failure("nobody/nothing")
show["split"] = failure("{SLIMPAJAMA}", split="test")
show["revision"] = failure("{SLIMPAJAMA}", revision="nope")
show["config"] = failure("{SLIMPAJAMA}", config="nope")
show["column"] = failure("{STAND_IN}", text_column="content")
""")
    for name, kind, part in [
        ("missing", "SourceUnreachable", "nobody/nothing is unreachable (not found on the Hub, or not public)."),
        ("split", "UserError", "has no split 'test': it has train, validation"),
        ("revision", "UserError", "has no revision 'nope'"),
        ("config", "UserError", "'nope' not found. Available: ['default']"),
        ("column", "UserError", "no column 'content': it has 'text', 'meta'"),
    ]:
        found, line, _ = shown[name]
        assert found == kind and part in line and "\n" not in line


def test_an_unreachable_source_is_given_up_after_max_stall_or_on_a_stop(hub: LoopbackHub, client: Client) -> None:
    hub.faults.append(Fault("example_train_1", status=404, times=10**6))
    shown = client(f"""
show["error"] = failure("{SLIMPAJAMA}", max_stall=1.5)
events.clear()
since = time.monotonic()
show["left"] = len(list(open_documents("{SLIMPAJAMA}", max_stall=600, should_stop=lambda: len(events) == 2)))
show["seconds"] = time.monotonic() - since
""")
    kind, line, seconds = shown["error"]
    assert kind == "SourceUnreachable" and 1 < seconds < 15
    assert line.startswith(f"{SLIMPAJAMA} delivered no document for ") and "--resume" in line
    assert shown["left"] == 2000 and shown["seconds"] < 15


def test_without_a_network_the_default_reports_what_it_uses_instead(folder: Path) -> None:
    code = f"""
since = time.monotonic()
stream = open_documents("auto")
show["source"] = [stream.source.name, stream.source.note, stream.repeat]
show["texts"] = [document.text for document in islice(stream, 2)]
show["seconds"] = time.monotonic() - since
show["insisted"] = failure("slimpajama")
show["named"] = failure("{STAND_IN}")
"""
    shown = run_client(closed_port(), folder, code)
    (line,) = shown["said"]
    note = line.partition(").")[0] + ")"
    assert note.startswith("SlimPajama is unreachable (no connection")
    assert line == f"{note}. Using the embedded Python library instead. To require SlimPajama: --dataset slimpajama"
    assert shown["source"] == ["python-library", note, True]
    assert shown["texts"] == ["embedded", "embedded"]
    assert shown["seconds"] < 10
    for name, source in (("insisted", "SlimPajama"), ("named", STAND_IN)):
        kind, line, _ = shown[name]
        assert kind == "SourceUnreachable" and line.startswith(f"{source} is unreachable (no connection")
    shown = run_client(closed_port(), folder, 'open_documents("auto")', HF_HUB_OFFLINE="1")
    assert shown["said"][0].startswith("SlimPajama is unreachable (HF_HUB_OFFLINE is set).")


@pytest.mark.full
def test_a_hub_that_hangs_leaves_time_for_the_second_dataset_and_for_a_stop(hub: LoopbackHub, client: Client) -> None:
    hub.faults.append(Fault(f"/api/datasets/{SLIMPAJAMA}", hang_seconds=60, times=10**6))
    shown = client("""
import datasets  # importing it takes a large part of the 20 seconds
show["source"] = open_documents("auto", first_document_seconds=20.0).source.name
stop_at = time.monotonic() + 0.5
show["stopped"] = failure("auto", should_stop=lambda: time.monotonic() > stop_at)
""")
    assert shown["source"] == STAND_IN
    kind, _, seconds = shown["stopped"]
    assert kind == "Stopped" and 0.5 <= seconds < 5
