"""The whole command against a failing Hub: every document arrives once, in order, with the same weights."""

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests.conftest import make_texts
from tests.loopback_hub import Fault, LoopbackHub, client_environment
from tests.runs.conftest import SMALL, count_steps, start, table, wait_until
from tests.runs.test_broken_data import json_lines
from tests.runs.test_resume import equal_runs
from trainer.data.tokenizer import Tokenizer

REPOSITORY = "someone/texts"
SHARDS, DOCUMENTS_EACH = 3, 40
STEPS = SHARDS * DOCUMENTS_EACH - 10
GIVEN_UP = (
    f"{REPOSITORY} delivered no document for 2 s: the Hub responded with status 503. Continue later with --resume"
)
EVENTS = "SELECT kind, detail FROM events WHERE kind IN ('retry', 'bad row') ORDER BY rowid"

IMPATIENT = """
import dataclasses, functools, socket, sys
from pathlib import Path
from tests.runs.conftest import QUICK
from trainer.cli import main
from trainer.data.document_stream import open_documents
from trainer.data.hub_file import RetryTiming

resolve = socket.getaddrinfo
def getaddrinfo(*arguments, **options):
    if Path("no-names").exists():
        raise socket.gaierror(-3, "Temporary failure in name resolution")
    return resolve(*arguments, **options)
socket.getaddrinfo = getaddrinfo
timing = RetryTiming(first_pause=0.05, longest_pause=0.3, stall=1.0)
documents = functools.partial(open_documents, timing=timing)
sys.exit(main(builders=dataclasses.replace(QUICK, open_documents=documents)))
"""


class Runner:
    """Starts runs in a folder that contains an undisturbed one, `whole`."""

    def __init__(self, folder: Path, hub: LoopbackHub) -> None:
        self.folder = folder
        self.hub = hub
        self.flags = [*SMALL, *f"--steps {STEPS} --dataset {REPOSITORY} --tokenizer tokenizer.model".split()]

    def start(self, *words: object) -> subprocess.Popen[str]:
        environment = client_environment(self.hub.endpoint, self.folder)
        return start(list(map(str, words)), self.folder, IMPATIENT, environment)

    def run(self, *words: object, code: int = 0) -> tuple[str, str]:
        process = self.start(*words)
        output, error = process.communicate(timeout=600)
        assert process.returncode == code, f"exit {process.returncode}\n{output}\n{error}"
        return output, error

    def events(self, out: str) -> list[str]:
        return [f"{kind}: {detail}" for kind, detail in table(self.folder / out / "training_viz", EVENTS)]

    def steps_of_first_shard(self) -> int:
        """Documents that are trained on before the second shard is needed (some are held out)."""
        sql = "SELECT count(*) FROM documents WHERE shard LIKE '%-0.%'"
        return int(table(self.folder / "whole" / "training_viz", sql)[0][0])

    def wait_for_steps(self, out: str, count: int, process: subprocess.Popen[str]) -> None:
        wait_until(lambda: count_steps(self.folder / out / "training_viz") >= count, process)

    def assert_like_whole(self, out: str) -> None:
        equal_runs(self.folder / "whole", self.folder / out, STEPS)

    def names_vanish(self, seconds: float) -> None:
        """Name resolution fails for a while."""
        flag = self.folder / "no-names"
        flag.touch()
        threading.Timer(seconds, flag.unlink).start()


def make_repository(folder: Path, kind: str) -> Path:
    texts = make_texts(SHARDS * DOCUMENTS_EACH, seed=5)
    for shard in range(SHARDS):
        part = texts[shard * DOCUMENTS_EACH : (shard + 1) * DOCUMENTS_EACH]
        path = folder / f"data/train-{shard}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "parquet":
            pq.write_table(pa.table({"text": part}), path, row_group_size=15)
        else:
            path.write_bytes(zstandard.compress(json_lines(part)))
    return folder


@pytest.fixture(scope="module", params=["jsonl.zst", pytest.param("parquet", marks=pytest.mark.full)])
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    folder = tmp_path_factory.mktemp("network")
    tokenizer = Tokenizer.train(make_texts(100, seed=5), 400)
    (folder / "tokenizer.model").write_bytes(tokenizer.model_bytes)
    with LoopbackHub({REPOSITORY: make_repository(folder / "repository", request.param)}) as hub:
        runner = Runner(folder, hub)
        runner.run(*runner.flags, "--out", "whole")
        yield runner


@pytest.fixture(autouse=True)
def no_faults_left(runner: Runner) -> Iterator[None]:
    whole = runner.hub.repositories[REPOSITORY]
    yield
    runner.hub.faults.clear()
    runner.hub.repositories[REPOSITORY] = whole
    runner.hub.forget_commits()


def every_fault(runner: Runner, part: str) -> list[tuple[Fault, str]]:
    """One of each, with the reason that its event gives."""
    return [
        (Fault(part, spoil=True), ""),  # the reason depends on the format
        (Fault(part, cut_after=3), "peer closed connection"),  # the first answers of a Parquet file are short
        (Fault(part, status=429, headers={"Retry-After": "1"}), "the Hub responded with status 429"),
        (Fault(part, status=503), "the Hub responded with status 503"),
        (Fault(part, status=500), "the Hub responded with status 500"),
        (Fault(part, status=404), "the Hub responded with status 404"),
        (Fault(part, stall_after=3, stall_seconds=20), "the Hub did not respond in time"),
        (Fault(part, hang_seconds=20), "the Hub did not respond in time"),
        (Fault(part, drop=True), "disconnected"),
        (Fault(part, drop=True, action=lambda: runner.names_vanish(0.7)), "name resolution"),
        (Fault(part, away_seconds=0.7), "refused"),
    ]


@pytest.mark.parametrize("shards", [["train-1"], pytest.param(["train-1", "train-2"], marks=pytest.mark.full)])
def test_each_fault_once_in_one_run(runner: Runner, tmp_path: Path, shards: list[str]) -> None:
    hub = runner.hub
    faults = [fault for shard in shards for fault in every_fault(runner, shard)]
    # A commit to main does not affect the run.
    moved = Fault("train-0", begins=range(1), drop=True, action=lambda: hub.push(REPOSITORY, other))
    other = make_repository(tmp_path / "other", "jsonl.zst")
    (other / "data/train-0.jsonl.zst").unlink()
    hub.faults = [fault for fault, _ in faults] + [moved]
    out = f"each-{tmp_path.name}"
    output, _ = runner.run(*runner.flags, "--out", out)
    assert not any(fault.times for fault in hub.faults), "a fault did not happen"
    assert hub.older[REPOSITORY]
    events = runner.events(out)
    for shard in shards:
        told = [event for event in events if f"{shard}." in event]
        assert all(event.startswith("retry: hf://") and "; retrying in" in event for event in told)
        for _, reason in every_fault(runner, shard):
            assert any(reason in event for event in told), (reason, told)
        assert len(told) >= len(every_fault(runner, shard))
    assert all(event.removeprefix("retry: ") in output for event in events)
    runner.assert_like_whole(out)


@pytest.mark.full
def test_two_interruptions_and_a_source_that_stays_away_in_one_run(runner: Runner, tmp_path: Path) -> None:
    """Ctrl-C while a response hangs and during a pause that the Hub asked for, then a Hub that stays away."""
    hub, out, steps = runner.hub, f"thrice-{tmp_path.name}", runner.steps_of_first_shard()
    folder = runner.folder / out
    for round, fault in enumerate(
        (Fault("train-1", hang_seconds=60), Fault("train-1", status=429, headers={"Retry-After": "60"}))
    ):
        met = threading.Event()
        fault.times, fault.action = 10**6, met.set
        hub.faults = [fault]
        process = runner.start(*(["--resume"] if round else runner.flags), "--out", out)
        assert met.wait(120)
        runner.wait_for_steps(out, steps, process)
        assert_ctrl_c_is_answered(process, folder / "checkpoints" / f"checkpoint_step_{steps}.bin")
    hub.faults = [Fault("train-1", status=503, times=10**6)]
    since = time.monotonic()
    _, error = runner.run("--resume", "--out", out, "--max-stall", 0.03, code=3)
    assert time.monotonic() - since < 60 and error.count("\n") == 1
    assert f"{REPOSITORY} delivered no document for 2 s: the Hub responded with status 503. Continue later" in error
    hub.faults.clear()
    runner.run("--resume", "--out", out)
    runner.assert_like_whole(out)


def assert_ctrl_c_is_answered(process: subprocess.Popen[str], checkpoint: Path) -> None:
    time.sleep(0.3)
    since = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    while not checkpoint.exists() and time.monotonic() < since + 60:
        time.sleep(0.01)
    answered = time.monotonic() - since
    output, error = process.communicate(timeout=120)
    assert process.returncode == 130, output + error
    assert answered < 2, answered  # within a second, plus a checkpoint on a shared machine
    assert "Traceback" not in error and "Fatal" not in error


@pytest.mark.full
@pytest.mark.parametrize("waits_for", ["an answer", "the rest of an answer", "the time that the Hub asked for"])
def test_a_run_that_ctrl_c_ended_during_a_wait_resumes_exactly(runner: Runner, tmp_path: Path, waits_for: str) -> None:
    met = threading.Event()
    how: dict[str, dict[str, Any]] = {
        "an answer": {"hang_seconds": 60},
        "the rest of an answer": {"stall_after": 10, "stall_seconds": 60},
        "the time that the Hub asked for": {"status": 429, "headers": {"Retry-After": "60"}},
    }
    runner.hub.faults = [Fault("train-1", times=10**6, action=met.set, **how[waits_for])]
    out = f"stopped-{tmp_path.name}"
    process = runner.start(*runner.flags, "--out", out)
    assert met.wait(120)
    steps = runner.steps_of_first_shard()
    runner.wait_for_steps(out, steps, process)
    assert_ctrl_c_is_answered(process, runner.folder / out / "checkpoints" / f"checkpoint_step_{steps}.bin")
    runner.hub.faults.clear()
    runner.run("--resume", "--out", out)
    runner.assert_like_whole(out)


@pytest.mark.full
def test_a_missing_commit_is_reported_in_one_line(runner: Runner, tmp_path: Path) -> None:
    hub = runner.hub
    commit = hub.commit(REPOSITORY)
    other = make_repository(tmp_path / "other", "jsonl.zst")
    (other / "data/train-0.jsonl.zst").unlink()

    def squash() -> None:
        hub.push(REPOSITORY, other)
        hub.forget_commits()

    hub.faults = [Fault("train-1", drop=True, action=squash)]
    out = f"gone-{tmp_path.name}"
    _, error = runner.run(*runner.flags, "--out", out, code=3)
    assert error.count("\n") == 1 and f"the Hub no longer has commit {commit[:12]} of {REPOSITORY}" in error
    assert (runner.folder / out / "checkpoints" / f"checkpoint_step_{runner.steps_of_first_shard()}.bin").exists()
    _, error = runner.run("--resume", "--out", out, code=2)
    assert error.count("\n") == 1 and commit in error


@pytest.mark.full
@pytest.mark.parametrize("seed", range(12))
def test_faults_mixed_at_random(runner: Runner, tmp_path: Path, seed: int) -> None:
    """One to twelve faults, some repeatedly, and sometimes a stop among them."""
    generator = random.Random(seed)
    makers: list[Callable[[str], Fault]] = [
        lambda part: Fault(part, cut_after=generator.randrange(6000), times=generator.randint(1, 6)),
        lambda part: Fault(part, status=429, headers={"Retry-After": str(generator.randint(0, 2))}),
        lambda part: Fault(part, status=generator.choice([408, 500, 502, 503, 504]), times=generator.randint(1, 6)),
        lambda part: Fault(part, status=generator.choice([401, 403, 404]), times=generator.randint(1, 3)),
        lambda part: Fault(part, stall_after=generator.randrange(6000), stall_seconds=20),
        lambda part: Fault(part, hang_seconds=generator.choice([0.2, 20])),
        lambda part: Fault(part, drop=True, times=generator.randint(1, 6)),
        lambda part: Fault(part, drop=True, action=lambda: runner.names_vanish(0.5)),
        lambda part: Fault(part, away_seconds=generator.uniform(0.1, 3)),
        lambda part: Fault(part, spoil=True),
    ]
    out = f"mixed-{tmp_path.name}"
    runner.hub.faults = [
        generator.choice(makers)(f"train-{generator.randrange(1, SHARDS)}") for _ in range(generator.randint(1, 12))
    ]
    for part in ("train-1", "train-2"):  # a third in a row would count as damage to the file
        for fault in [fault for fault in runner.hub.faults if fault.spoil and fault.part == part][2:]:
            runner.hub.faults.remove(fault)
    print(runner.hub.faults)
    if generator.random() < 0.5:
        process = runner.start(*runner.flags, "--out", out)
        rows = generator.randrange(5, STEPS - 20)
        runner.wait_for_steps(out, rows, process)
        os.killpg(process.pid, signal.SIGINT)
        output, error = process.communicate(timeout=120)
        assert process.returncode in (0, 130), output + error
        if process.returncode:
            runner.run("--resume", "--out", out)
    else:
        runner.run(*runner.flags, "--out", out)
    assert not [event for event in runner.events(out) if event.startswith("bad row")]
    runner.assert_like_whole(out)
