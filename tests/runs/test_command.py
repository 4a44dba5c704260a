"""The contract, from a real `--test` run in a process of its own."""

import json
import math
import re
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.conftest import PROJECT, Run, command_environment, write_jsonl
from tests.runs.conftest import STEPS, Train, table
from trainer.schedule import warmup_then_constant


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory, run_command: Run) -> tuple[Path, str]:
    """The folder and the output of `python train_slimpajama.py --test`, as a newcomer runs it."""
    folder = tmp_path_factory.mktemp("smoke")
    return folder, run_command("--test", cwd=folder).stdout


def strict_json(path: Path) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_metrics_history(smoke: tuple[Path, str]) -> None:
    history = strict_json(smoke[0] / "training_viz" / "metrics_history.json")
    assert list(history)[:5] == ["steps", "loss", "accuracy", "throughput", "learning_rate"]
    assert {len(column) for column in history.values()} == {100}
    assert history["steps"] == list(range(100))
    assert history["learning_rate"] == pytest.approx([warmup_then_constant(step, 0.001, 20) for step in range(100)])
    assert all(0 <= value <= 1 for value in history["accuracy"])
    assert all(value > 0 for value in history["throughput"])
    assert history["loss"][0] == pytest.approx(math.log(8192), abs=0.5)
    assert sum(history["loss"][-20:]) / 20 < history["loss"][0] - 1


def test_text_samples(smoke: tuple[Path, str]) -> None:
    samples = strict_json(smoke[0] / "training_viz" / "text_samples.json")
    assert [sample["step"] for sample in samples] == list(range(0, 100, 10))
    for sample in samples:
        assert {"step", "input", "output", "accuracy", "prompt", "reference", "source"} <= set(sample)
        assert sample["input"].startswith(sample["prompt"]) and sample["output"] != sample["reference"]
        assert sample["source"].startswith("python-")


def test_run_json(smoke: tuple[Path, str]) -> None:
    run = strict_json(smoke[0] / "training_viz" / "run.json")
    assert run["config"]["num_steps"] == 100 and run["source"] == "python-library" and len(run["revision"]) == 64
    assert run["versions"]["torch"] and run["outcome"] == "done" and run["json_through_step"] == 99


def test_pictures_and_checkpoints(smoke: tuple[Path, str]) -> None:
    viz, checkpoints = smoke[0] / "training_viz", smoke[0] / "checkpoints"
    numbered = sorted(path.name for path in viz.glob("training_step_*.png"))
    assert numbered == [f"training_step_{step:06d}.png" for step in (25, 50, 75, 100)]
    assert (viz / "training_latest.png").read_bytes() == (viz / numbered[-1]).read_bytes()
    assert all((viz / name).read_bytes().startswith(b"\x89PNG") for name in numbered)
    assert sorted(path.name for path in checkpoints.glob("*.bin")) == [
        "checkpoint_step_100.bin",
        "checkpoint_step_50.bin",
    ]
    assert not list(viz.glob("run.db-*"))  # a clean end leaves one file


def test_the_store_holds_every_document(smoke: tuple[Path, str]) -> None:
    viz = smoke[0] / "training_viz"
    assert table(viz, "SELECT count(*), min(step), max(step) FROM documents") == [(100, 0, 99)]
    assert table(viz, "SELECT count(DISTINCT text_hash) FROM documents") == [(100,)]
    assert {kind for (kind,) in table(viz, "SELECT DISTINCT kind FROM events")} == {"checkpoint"}
    assert table(viz, "SELECT length(tokenizer) > 10000, ended > started FROM run") == [(1, 1)]
    losses = [row[1] for row in table(viz, STEPS)]
    history = strict_json(viz / "metrics_history.json")
    assert history["loss"] == pytest.approx(losses, rel=1e-5)


def test_what_the_terminal_says(smoke: tuple[Path, str]) -> None:
    lines = smoke[1].splitlines()
    assert [line.split(":")[0].split()[0] for line in lines[:4]] == ["Data", "Model", "This", "Watch"]
    assert "python-library" in lines[0] and "13.8 M" in lines[1] and "GB" in lines[2]
    done, loss, speed, files, following = lines[-5:]
    assert re.match(r"Done: 100 documents trained \([\d,]+ tokens\)", done)
    assert "bits per byte" in loss and "zstd -19" in loss and "first and the last 50" in loss
    assert "tokens/s" in speed and "waiting" in speed
    assert "training_latest.png" in files and "checkpoint_step_100.bin" in files
    assert following.startswith("To go on: ") and "--resume" in following and "trainer.generate" in following
    assert "Training:" not in smoke[1]  # no bar where there is no terminal


def test_the_checkpoint_writes_text(smoke: tuple[Path, str], run_command: Run) -> None:
    done = run_command("--prompt", "def main(", "--max-new-tokens", 20, cwd=smoke[0], module="trainer.generate")
    assert len(done.stdout) > 10


def test_the_model_loads_the_checkpoint(smoke: tuple[Path, str]) -> None:
    from trainer.config import MODEL_SIZES
    from trainer.model import LanguageModel

    model = LanguageModel(MODEL_SIZES["small"], 8192)
    model.load_checkpoint(smoke[0] / "checkpoints" / "checkpoint_step_100.bin")
    assert len(model.generate([1, 2, 3], max_length=10)) == 10


def test_the_bar(tmp_path: Path, corpus: Path) -> None:
    """In a real terminal of 120 columns: 100 columns in all, with the postfix of the contract."""
    if not _has_tmux():
        pytest.fail("tmux is missing: apt-get install tmux (.ci/run installs it)")
    flags = "--model-size tiny --max-seq-length 48 --vocab-size 400 --dtype fp32 --steps 100 --warmup-steps 10"
    command = f"{sys.executable} {PROJECT / 'train_slimpajama.py'} {flags} --dataset {corpus}; echo exit=$?; sleep 20"
    session = f"bar-{tmp_path.name}-{time.monotonic_ns()}"
    subprocess.run(
        ["tmux", "new-session", "-d", "-s", session, "-x", "120", "-y", "50", f"cd {tmp_path}; {command}"],
        env=command_environment(),
        check=True,
    )
    try:
        screen = ""
        deadline = time.monotonic() + 90
        while "exit=" not in screen and time.monotonic() < deadline:
            time.sleep(0.3)
            screen = subprocess.run(
                ["tmux", "capture-pane", "-p", "-t", session], capture_output=True, text=True, check=True
            ).stdout
    finally:
        subprocess.run(["tmux", "kill-session", "-t", session], check=True)
    assert "exit=0" in screen, screen
    bar = next(line for line in screen.splitlines() if line.startswith("Training:"))
    assert re.fullmatch(
        r"Training: 100%\|.*\| 100/100 \[\d\d:\d\d, "
        r"loss=\d\.\d{4}, acc=\d+\.\d%, tps=\d+\.\d, lr=1\.00e-03, eta=0\.0s\]",
        bar,
    )
    assert len(bar) <= 100


def _has_tmux() -> bool:
    return subprocess.run(["which", "tmux"], capture_output=True, check=False).returncode == 0


def test_auto_falls_back_loudly_and_says_it_everywhere(tmp_path: Path, run_command: Run) -> None:
    flags = "--model-size tiny --max-seq-length 32 --vocab-size 400 --steps 3 --warmup-steps 1".split()
    since = time.monotonic()
    done = run_command(*flags, cwd=tmp_path)
    assert time.monotonic() - since < 40
    said = [line for line in done.stdout.splitlines() if line.startswith("SlimPajama out of reach (")]
    assert len(said) == 1
    assert said[0].endswith("). Using the embedded Python library. To insist: --dataset slimpajama")
    reason = re.search(r"out of reach \((.*)\)\. Using", said[0])
    assert reason is not None
    note = f"SlimPajama out of reach ({reason[1]})"
    assert note in next(line for line in done.stdout.splitlines() if line.startswith("Data:"))
    assert table(tmp_path / "training_viz", "SELECT source, note FROM run") == [("python-library", note)]
    assert strict_json(tmp_path / "training_viz" / "run.json")["note"] == note


def test_a_named_dataset_is_never_replaced(tmp_path: Path, run_command: Run) -> None:
    for name in ("slimpajama", "someone/something"):
        done = run_command("--dataset", name, "--steps", 3, cwd=tmp_path, check=3)
        assert done.stderr.count("\n") == 1 and "train_slimpajama.py: " in done.stderr
    assert not list(tmp_path.rglob("*.png")) and not list(tmp_path.rglob("run.db"))


def test_mistakes_exit_2_with_one_line_and_lose_nothing(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train("--steps", 2) == 0
    before = table(tmp_path / "training_viz", STEPS)
    (tmp_path / "bad.model").write_text("not a model")
    (tmp_path / "array.json").write_text('[{"text": "one"}]')
    (tmp_path / "file").touch()
    write_jsonl(tmp_path / "empty.jsonl", [])
    write_jsonl(tmp_path / "nulls.jsonl", [None] * 1002)
    mistakes: list[tuple[list[object], str]] = [
        (["--steps", 0], "--steps"),
        (["--max-seq-length", 1], "--max-seq-length"),
        (["--tokenizer", "missing.model"], "missing.model"),
        (["--tokenizer", "bad.model"], "bad.model"),
        (["--dataset", "missing.jsonl"], "missing.jsonl"),
        (["--dataset", "array.json"], "one JSON object per line"),
        (["--dataset", "empty.jsonl"], "no text"),
        (["--dataset", "nulls.jsonl"], "text is no string"),
        (["--text-column", "body"], "'text'"),
        (["--viz-dir", "file/viz"], "can't be written"),
        (["--device", "cuda:7"], "--device cuda:7"),
        (["--pretrained-checkpoint", "missing.bin"], "missing.bin"),
        (["--resume", "nonsense"], "nonsense"),
    ]
    for flags, part in mistakes:
        capsys.readouterr()
        assert train(*flags) == 2, flags
        error = capsys.readouterr().err
        assert error.startswith("train_slimpajama.py: ") and error.count("\n") == 1 and part in error, error
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train("--steps", 2) == 2
    assert table(tmp_path / "training_viz", STEPS) == before
    assert not (tmp_path / "training_viz" / "earlier").exists()


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    import train_slimpajama

    for flag in ("--help", "--version"):
        with pytest.raises(SystemExit) as caught:
            train_slimpajama.main([flag])
        assert caught.value.code == 0
    assert "--max-seq-length" in capsys.readouterr().out


def test_a_store_of_a_running_run_can_be_read(tmp_path: Path, corpus: Path) -> None:
    flags = "--model-size tiny --max-seq-length 48 --vocab-size 400 --dtype fp32 --steps 100000 --repeat".split()
    process = subprocess.Popen(
        [sys.executable, PROJECT / "train_slimpajama.py", *flags, "--dataset", corpus],
        cwd=tmp_path,
        env=command_environment(),
        stdout=subprocess.DEVNULL,
    )
    counts = []
    try:
        deadline = time.monotonic() + 60
        while len(counts) < 3 and time.monotonic() < deadline:
            time.sleep(0.5)
            try:
                count = table(tmp_path / "training_viz", "SELECT count(*) FROM steps")[0][0]
            except sqlite3.OperationalError:  # not made yet
                continue
            if count > (counts[-1] if counts else 0):
                counts.append(count)
    finally:
        process.terminate()
        process.wait(60)
    assert len(counts) == 3
