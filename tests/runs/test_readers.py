"""Fifty readers of a page while its run trains: they are answered, and training does not feel it."""

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.runs.conftest import Train, table
from tests.viz.holding import hold
from viz.page.process import PageProcess, listen
from viz.record.writer import StoreConnection, StoreWriter
from viz.visualizer import TrainingVisualizer

STEPS = 200
LONGEST = 0.25
"""Seconds that a call of the trainer may take on a machine that others use too."""

READERS = """
import collections, http.client, json, os, random, sys, threading
os.nice(10)  # as browsers on other machines: they take no core from the trainer
port, statuses, stop = int(sys.argv[1]), collections.Counter(), threading.Event()
failures = []

def read(number):
    random.seed(number)
    while not stop.is_set():
        paths = ("/api/run", "/api/series?window=50", "/api/spikes", "/api/sources", "/api/events", "/api/samples",
                 f"/api/documents/{random.randrange(200)}", "/api/search?q=document&limit=5", "/api/runs")
        path = random.choice(paths)
        try:
            connection = http.client.HTTPConnection("localhost", port, timeout=60)
            connection.request("GET", path)
            answer = connection.getresponse()
            told = json.loads(answer.read())
            connection.close()
        except Exception as error:
            failures.append(f"{path}: {error!r}")
            continue
        is_waiting = told.get("state") == "waiting"
        is_fine = answer.status in (200, 404) or (answer.status == 503 and is_waiting)
        statuses[answer.status] += 1
        if not is_fine:
            failures.append(f"{path}: {answer.status} {told}")

threads = [threading.Thread(target=read, args=(number,), daemon=True) for number in range(50)]
for thread in threads:
    thread.start()
print("reading", flush=True)
sys.stdin.read()
stop.set()
for thread in threads:
    thread.join(60)
print(json.dumps({"statuses": statuses, "failures": failures[:5]}))
"""


def timed(function: Callable[..., Any], into: list[float]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        began = time.monotonic()
        try:
            return function(*arguments, **named)
        finally:
            into.append(time.monotonic() - began)

    return call


def count_waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An entry for each time that a transaction of ours was kept waiting by another program."""
    held: list[str] = []
    wait = StoreConnection._wait

    def counted(connection: StoreConnection, error: sqlite3.OperationalError) -> None:
        held.append(str(error))
        wait(connection, error)

    monkeypatch.setattr(StoreConnection, "_wait", counted)
    return held


def test_fifty_readers_are_answered_and_training_waits_for_none(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds: list[float] = []
    held = count_waits(monkeypatch)
    monkeypatch.setattr(TrainingVisualizer, "update", timed(TrainingVisualizer.update, seconds))
    page = PageProcess(tmp_path, listen(0))  # before the run: it waits for one
    command = [sys.executable, "-c", READERS, str(page.port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as readers:
        assert readers.stdout is not None and readers.stdout.readline() == "reading\n"
        assert train("--steps", STEPS, "--display-samples", 20) == 0
        told = json.loads(readers.communicate()[0])
    assert page.stop() == ""
    assert told["failures"] == []
    assert told["statuses"]["200"] > 100
    record = tmp_path / "training_viz"
    assert table(record, "SELECT count(*), max(step) FROM steps") == [(STEPS, STEPS - 1)]
    assert table(record, "SELECT count(*) FROM documents") == [(STEPS,)]
    assert len(seconds) >= STEPS and max(seconds) < LONGEST
    assert held == []  # nor did the thread that writes find the store held, not once


@pytest.mark.parametrize("waits", [False, True])
def test_control_a_call_that_waited_for_the_commit_would_be_seen(
    tmp_path: Path, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same measure, while another program holds the store: `add` is below it, `add` and `flush` are not."""
    held = count_waits(monkeypatch)
    writer, seconds = StoreWriter(tmp_path / "run.db", {}), []

    def add(step: int) -> None:
        writer.add("steps", {"step": step, "rank": 0, "loss": 2.0})
        if waits:
            writer.flush()

    add(0)
    writer.flush()
    with hold(tmp_path / "run.db", "writer", seconds=2 * LONGEST) as holder:
        holder.begins()
        for step in range(1, 50):
            timed(add, seconds)(step)
        holder.lets_go()
    writer.close()
    assert (max(seconds) >= LONGEST) is waits and "database is locked" in held
    assert table(tmp_path, "SELECT count(*) FROM steps") == [(50,)]
