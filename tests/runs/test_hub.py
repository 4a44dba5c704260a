"""The main job as it is meant: the default source, streamed from a Hub, with a broken connection on the way."""

import json
from pathlib import Path

import pytest
import zstandard

from tests.conftest import Run, make_texts
from tests.loopback_hub import Fault, LoopbackHub, client_environment
from tests.runs.conftest import SMALL, table
from tests.runs.test_resume import equal_runs

REPOSITORY = "DKYoon/SlimPajama-6B"


def make_repository(folder: Path, texts: list[str]) -> Path:
    """Two training shards and a validation split, as SlimPajama has them; texts that hardly compress."""
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


def test_the_default_source_streams_survives_a_cut_and_resumes_in_the_same_data(
    tmp_path: Path, run_command: Run
) -> None:
    texts = make_texts(120, seed=5)
    repository = make_repository(tmp_path / "repository", texts)
    with LoopbackHub({REPOSITORY: repository}) as hub:
        environment = client_environment(hub.endpoint, tmp_path / "home")
        command = [*SMALL, "--steps", 80, "--evaluation-interval", 40]
        whole = run_command(*command, "--out", "whole", cwd=tmp_path, environment=environment)
        # The shard breaks off while the tokenizer's documents are collected.
        hub.faults.append(Fault("example_train_1", cut_after=3000, times=1))
        run_command(*command, "--steps", 35, "--out", "parts", cwd=tmp_path, environment=environment)
        run_command("--resume", "--steps", 80, "--out", "parts", cwd=tmp_path, environment=environment)
        revision = hub.commit(REPOSITORY)
    retries = table(tmp_path / "parts" / "training_viz", "SELECT detail FROM events WHERE kind = 'retry'")
    assert len(retries) == 1 and "example_train_1" in retries[0][0]  # kept, though there was no record yet
    assert f"Data: {REPOSITORY}, revision {revision[:12]}" in whole.stdout
    equal_runs(tmp_path / "whole", tmp_path / "parts", 80)
    viz = tmp_path / "whole" / "training_viz"
    assert table(viz, "SELECT source, revision, note FROM run") == [(REPOSITORY, revision, "")]
    assert table(viz, "SELECT DISTINCT source FROM documents") == [("RedPajamaC4",)]
    rows = table(viz, "SELECT shard, row FROM documents ORDER BY step")
    assert [row for _, row in rows] == [*range(60), *range(20)]  # nothing held out: there is a validation split
    assert all(f"@{revision}/train/" in shard for shard, _ in rows)
    evaluations = table(viz, "SELECT step, tokens FROM evaluations WHERE source = ''")
    assert [step for step, _ in evaluations] == [39, 79] and evaluations[0][1] == 20 * 47


@pytest.mark.full  # `test_network.py` has more of it
def test_a_shard_that_breaks_while_it_is_trained_on(tmp_path: Path, run_command: Run) -> None:
    texts = make_texts(300, seed=5)
    with LoopbackHub({"someone/texts": make_repository(tmp_path / "repository", texts)}) as hub:
        environment = client_environment(hub.endpoint, tmp_path / "home")
        tokenizer = tmp_path / "whole" / "tokenizer.model"
        command = [*SMALL, "--steps", 300, "--dataset", "someone/texts"]
        run_command(*command, "--out", "whole", cwd=tmp_path, environment=environment)
        tokenizer.write_bytes(table(tmp_path / "whole" / "training_viz", "SELECT tokenizer FROM run")[0][0])
        # With a tokenizer at hand the second shard is first read when it is trained on.
        hub.faults += [Fault("example_train_1", status=404), Fault("example_train_1", cut_after=3000)]
        cut = run_command(*command, "--out", "cut", "--tokenizer", tokenizer, cwd=tmp_path, environment=environment)
        assert not any(fault.times for fault in hub.faults), "the faults were not met"
    steps = "SELECT step, loss FROM steps"
    assert table(tmp_path / "cut" / "training_viz", steps) == table(tmp_path / "whole" / "training_viz", steps)
    assert "trying again" in cut.stdout
    events = table(tmp_path / "cut" / "training_viz", "SELECT detail FROM events WHERE kind = 'retry' ORDER BY rowid")
    assert ["the Hub responded with status 404" in detail for (detail,) in events] == [True, False]
