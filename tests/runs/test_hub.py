"""The main job: the default source, streamed from a Hub, with a broken connection on the way."""

import json
import subprocess
import sys
from pathlib import Path

import zstandard

from tests.conftest import command_environment, make_texts
from tests.loopback_hub import Fault, LoopbackHub, client_environment
from tests.runs.conftest import table
from tests.runs.test_resume import equal_runs

REPOSITORY = "DKYoon/SlimPajama-6B"

RUNS = """
import sys
from dataclasses import replace
from tests.runs.conftest import QUICK, SMALL
from trainer.cli import main
from trainer.observe.evaluation import AutomaticEvaluation

for line in sys.stdin:
    patience, *words = line.split()
    soon = AutomaticEvaluation(interval=10, shortest_run=20, share_of_time=1e3, patience=float(patience))
    words = words if "--resume" in words else [*SMALL, *words]
    print("exit", main(words, replace(QUICK, automatic_evaluation=soon)), flush=True)
"""


class HubRuns:
    """Runs of the command in one other process, for which the Hub is `hub`. A run of 20 documents is evaluated."""

    def __init__(self, hub: LoopbackHub, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", RUNS],
            cwd=folder,
            env=command_environment() | client_environment(hub.endpoint, folder / "home"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, words: str, *, patience: float = 30) -> tuple[int, str]:
        """The exit code and the output. `patience`: seconds that the run waits for its held-out documents."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(patience, words, file=self._process.stdin, flush=True)
        output = ""
        for line in self._process.stdout:
            if line.startswith("exit "):
                return int(line.split()[1]), output
            output += line
        raise AssertionError(output)

    def __enter__(self) -> "HubRuns":
        return self

    def __exit__(self, *raised: object) -> None:
        self._process.communicate(timeout=60)


def make_repository(folder: Path, texts: list[str]) -> Path:
    """Two training shards and a validation split, like SlimPajama, with texts that hardly compress."""
    half = len(texts) // 2
    for name, part in (
        ("train/chunk1/example_train_0.jsonl.zst", texts[:half]),
        ("train/chunk1/example_train_1.jsonl.zst", texts[half:]),
        ("validation/chunk1/example_holdout_0.jsonl.zst", make_texts(20, seed=9)),
    ):
        rows = [json.dumps({"text": text, "meta": {"redpajama_set_name": "RedPajamaC4"}}) for text in part]
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(zstandard.compress("\n".join(rows).encode(), 1))
    return folder


def test_the_default_source_streams_survives_a_cut_and_resumes_in_the_same_data(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "repository", make_texts(60, seed=5))
    with LoopbackHub({REPOSITORY: repository}) as hub, HubRuns(hub, tmp_path) as runs:
        words = "--evaluation-interval 20 --steps"
        code, output = runs.run(f"{words} 40 --out whole")
        assert code == 0, output
        # The shard breaks off while the tokenizer's documents are collected.
        hub.faults.append(Fault("example_train_1", cut_after=3000, times=1))
        for more in (f"{words} 18 --out parts", "--resume --steps 40 --out parts"):
            code, error = runs.run(more)
            assert code == 0, error
        revision = hub.commit(REPOSITORY)
    retries = table(tmp_path / "parts" / "training_viz", "SELECT detail FROM events WHERE kind = 'retry'")
    assert len(retries) == 1 and "example_train_1" in retries[0][0]  # recorded, although there was no store yet
    assert f"Data: {REPOSITORY}, revision {revision[:12]}" in output
    equal_runs(tmp_path / "whole", tmp_path / "parts", 40)
    viz = tmp_path / "whole" / "training_viz"
    assert table(viz, "SELECT source, revision, note FROM run") == [(REPOSITORY, revision, "")]
    assert table(viz, "SELECT DISTINCT source FROM documents") == [("RedPajamaC4",)]
    rows = table(viz, "SELECT shard, row FROM documents ORDER BY step")
    assert [row for _, row in rows] == [*range(30), *range(10)]  # nothing held out: there is a validation split
    assert all(f"@{revision}/train/" in shard for shard, _ in rows)
    evaluations = table(viz, "SELECT step, tokens FROM evaluations WHERE source = ''")
    assert [step for step, _ in evaluations] == [19, 39] and evaluations[0][1] == 20 * 47
