"""Fifty readers of a page while its run trains: they get answers, and training does not wait for them."""

import functools
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.runs.conftest import QUICK, Train, table
from tests.viz.holding import hold
from viz.page.process import PageProcess, listen
from viz.record.writer import StoreWriter
from viz.visualizer import TrainingVisualizer

STEPS = 100
LONGEST = 0.25
"""Seconds that a call of the trainer may take on a shared machine."""

READERS = """
import collections, http.client, json, os, random, sys, threading
os.nice(10)  # like browsers on other machines, they take no core from the trainer
port, statuses, stop = int(sys.argv[1]), collections.Counter(), threading.Event()
failures = []

def read(number):
    random.seed(number)
    while not stop.is_set():
        paths = ("/api/run", "/api/series?window=50", "/api/spikes", "/api/sources", "/api/events", "/api/samples",
                 f"/api/documents/{random.randrange(100)}", "/api/search?q=document&limit=5", "/api/runs")
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
        statuses[answer.status] += 1
        if answer.status not in (200, 404) and (answer.status, told.get("state")) != (503, "waiting"):
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


class Timed(TrainingVisualizer):
    """Measures how long each `update` takes."""

    def __init__(self, *arguments: Any, seconds: list[float], waits: list[int], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._seconds, self._waits = seconds, waits

    def update(self, *arguments: Any, **options: Any) -> None:
        began = time.monotonic()
        super().update(*arguments, **options)
        self._seconds.append(time.monotonic() - began)

    def close(self, outcome: str = "done") -> None:
        super().close(outcome)
        self._waits.append(self._store.times_locked)


@pytest.mark.full  # the quick suite: `test_record_faults.py` has readers and writers that hold the store
def test_fifty_readers_are_answered_and_training_waits_for_none(train: Train, tmp_path: Path) -> None:
    seconds: list[float] = []
    waits: list[int] = []
    builders = replace(QUICK, visualizer=functools.partial(Timed, seconds=seconds, waits=waits))
    page = PageProcess(tmp_path, listen(0))  # before the run: it waits for one
    command = [sys.executable, "-c", READERS, str(page.port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as readers:
        assert readers.stdout is not None and readers.stdout.readline() == "reading\n"
        assert train("--steps", STEPS, "--display-samples", 20, builders=builders) == 0
        told = json.loads(readers.communicate()[0])
    assert page.stop() == ""
    assert told["failures"] == []
    assert told["statuses"]["200"] > 100
    record = tmp_path / "training_viz"
    assert table(record, "SELECT count(*), max(step) FROM steps") == [(STEPS, STEPS - 1)]
    assert table(record, "SELECT count(*) FROM documents") == [(STEPS,)]
    assert len(seconds) >= STEPS and max(seconds) < LONGEST
    assert waits == [0]  # the thread that writes never found the store locked


@pytest.mark.parametrize("waits", [False, True])
def test_a_call_that_waits_for_the_commit_is_detected(tmp_path: Path, waits: bool) -> None:
    """Control: while another process locks the store, `add` takes less than `LONGEST`; `add` and `flush` do not."""
    writer, seconds = StoreWriter(tmp_path / "run.db", {}), []

    def add(step: int) -> None:
        writer.add("steps", {"step": step, "rank": 0, "loss": 2.0})
        if waits:
            writer.flush()

    add(0)
    writer.flush()
    with hold(tmp_path / "run.db", "writer", seconds=4 * LONGEST) as holder:
        holder.begins()
        for step in range(1, 50):
            began = time.monotonic()
            add(step)
            seconds.append(time.monotonic() - began)
        holder.lets_go()
    writer.close()
    assert (max(seconds) >= LONGEST) is waits and writer.times_locked > 0
    assert table(tmp_path, "SELECT count(*) FROM steps") == [(50,)]
