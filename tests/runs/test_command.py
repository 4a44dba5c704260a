"""The contract, checked on a real `--test` run in its own process."""

import dataclasses
import fcntl
import io
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
import tomllib
from pathlib import Path

import pytest

from tests.conftest import PROJECT, Run, command_environment, make_texts, write_jsonl
from tests.faults import read_json
from tests.runs.conftest import SMALL, STEPS, Capture, Train, error_line, run_code, start, table
from trainer.cli import main
from trainer.config import MODEL_SIZES
from trainer.data.document_filter import hash_text, is_held_out
from trainer.data.tokenizer import Tokenizer
from trainer.learning.optimizer import Recipe
from trainer.learning.schedule import warmup_then_constant
from trainer.model.language_model import LanguageModel
from viz.record.reader import StoreReader


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory, run_command: Run) -> tuple[Path, str]:
    """Folder and output of `python train_slimpajama.py --test`, as a newcomer runs it."""
    folder = tmp_path_factory.mktemp("smoke")
    return folder, run_command("--test", cwd=folder, environment={"OMP_NUM_THREADS": "2"}).stdout


def test_metrics_history(smoke: tuple[Path, str]) -> None:
    history = read_json(smoke[0] / "training_viz" / "metrics_history.json")
    assert list(history)[:5] == ["steps", "loss", "accuracy", "throughput", "learning_rate"]
    assert {len(column) for column in history.values()} == {100}
    assert history["steps"] == list(range(100))
    assert history["learning_rate"] == pytest.approx([warmup_then_constant(step, 0.001, 20) for step in range(100)])
    assert all(0 <= value <= 1 for value in history["accuracy"])
    assert all(value > 0 for value in history["throughput"])
    assert history["loss"][0] == pytest.approx(math.log(8192), abs=0.5)
    assert sum(history["loss"][-20:]) / 20 < history["loss"][0] - 1


def test_text_samples(smoke: tuple[Path, str]) -> None:
    """Input, prompt and reference in the JSON follow from the token ids in the store."""
    viz = smoke[0] / "training_viz"
    samples = read_json(viz / "text_samples.json")
    assert [sample["step"] for sample in samples] == list(range(0, 100, 10))
    with StoreReader(viz / "run.db") as store:
        tokenizer = Tokenizer.from_bytes(store.run()["tokenizer"])
        documents = {step: store.documents(step)[0] for step in range(0, 100, 10)}
    accuracies = read_json(viz / "metrics_history.json")["accuracy"]
    for sample in samples:
        ids = documents[sample["step"]]["token_ids"].tolist()
        assert sample["input"] == tokenizer.DecodeIds(ids[:-1][:50])
        assert sample["prompt"] == tokenizer.DecodeIds(ids[:10])
        assert sample["reference"] == tokenizer.DecodeIds(ids[10:40]) != sample["output"]
        assert len(tokenizer.EncodeAsIds(sample["output"])) >= 10
        assert sample["source"] == documents[sample["step"]]["source"]
        assert sample["accuracy"] == accuracies[sample["step"]]


def test_no_held_out_document_is_trained_on(train: Train, tmp_path: Path) -> None:
    texts = make_texts(120)
    assert train("--dataset", write_jsonl(tmp_path / "few.jsonl", texts), "--steps", 400) == 0
    held_out = {hash_text(text) for text in texts if is_held_out(hash_text(text))}
    trained = {row[0] for row in table(tmp_path / "training_viz", "SELECT text_hash FROM documents")}
    assert held_out and not held_out & trained and len(held_out) + len(trained) == 120


def test_run_json(smoke: tuple[Path, str]) -> None:
    run = read_json(smoke[0] / "training_viz" / "run.json")
    assert run["config"]["num_steps"] == 100 and run["source"] == "python-library" and len(run["revision"]) == 64
    assert run["versions"]["torch"] and run["outcome"] == "done" and run["json_through_step"] == 99
    assert run["recipe"] == pytest.approx(dataclasses.asdict(Recipe.for_width(384)), rel=1e-5)
    assert run["flops"]["peak_per_second"] > 0 and 0.01 < run["mfu"] < 1


def test_images_and_checkpoints(smoke: tuple[Path, str]) -> None:
    viz, checkpoints = smoke[0] / "training_viz", smoke[0] / "checkpoints"
    numbered = sorted(path.name for path in viz.glob("training_step_*.png"))
    assert numbered == [f"training_step_{step:06d}.png" for step in (25, 50, 75, 100)]
    assert (viz / "training_latest.png").read_bytes() == (viz / numbered[-1]).read_bytes()
    assert all((viz / name).read_bytes().startswith(b"\x89PNG") for name in numbered)
    assert {path.name for path in checkpoints.glob("*.bin")} == {"checkpoint_step_50.bin", "checkpoint_step_100.bin"}
    assert not list(viz.glob("run.db-*"))  # a clean end leaves one file


def test_the_store_contains_every_document(smoke: tuple[Path, str]) -> None:
    viz = smoke[0] / "training_viz"
    assert table(viz, "SELECT count(*), min(step), max(step) FROM documents") == [(100, 0, 99)]
    assert table(viz, "SELECT count(DISTINCT text_hash) FROM documents") == [(100,)]
    kinds = {kind for (kind,) in table(viz, "SELECT DISTINCT kind FROM events")}
    # One document in a hundred may be a spike, and how many measurements there is time for depends on the machine.
    assert kinds - {"spike", "probe left out"} == {"checkpoint"}
    assert table(viz, "SELECT count(*) > 0, min(step - document), min(document) >= 49 FROM probes") == [(1, 0, 1)]
    assert table(viz, "SELECT length(tokenizer) > 10000, ended > started FROM run") == [(1, 1)]
    losses = [row[1] for row in table(viz, STEPS)]
    history = read_json(viz / "metrics_history.json")
    assert history["loss"] == pytest.approx(losses, rel=1e-5)


def test_the_printed_lines(smoke: tuple[Path, str]) -> None:
    lines = smoke[1].splitlines()
    assert [line.split(":")[0].split()[0] for line in lines[:4]] == ["Data", "Model", "Plan", "Chart"]
    assert "python-library" in lines[0] and "13.8 M" in lines[1] and "MB on disk" in lines[2]
    done, loss, speed, read, files, resume, generate = lines[-7:]
    assert re.match(r"Done: 100 documents trained \([\d,]+ tokens\)", done)
    assert "bits per byte" in loss and "zstd -19" in loss and "first and the last 50" in loss
    assert "tokens/s" in speed and "waiting" in speed
    assert read.endswith("python -m viz serve training_viz")
    assert "training_latest.png" in files and "checkpoint_step_100.bin" in files
    assert re.match("Resume: python .*train_slimpajama.py --test --resume --steps 200", resume)
    assert re.match("Generate: .*python -m trainer.generate checkpoints/checkpoint_step_100.bin", generate)
    assert "Training:" not in smoke[1]  # no bar where there is no terminal


def test_the_checkpoint_writes_text(smoke: tuple[Path, str], run_command: Run) -> None:
    done = run_command("--prompt", "def main(", "--max-new-tokens", 20, cwd=smoke[0], module="trainer.generate")
    assert len(done.stdout) > 10


def test_the_model_loads_the_checkpoint(smoke: tuple[Path, str]) -> None:
    model = LanguageModel(MODEL_SIZES["small"], 8192)
    model.load_checkpoint(smoke[0] / "checkpoints" / "checkpoint_step_100.bin")
    assert len(model.generate([1, 2, 3], max_length=10)) == 10


def test_the_bar(tmp_path: Path, corpus: Path) -> None:
    """In a terminal with 120 columns, it has 100 columns and the postfix of the contract."""
    terminal, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 120, 0, 0))
    process = subprocess.Popen(
        [sys.executable, PROJECT / "train_slimpajama.py", *SMALL, "--steps", "20", "--dataset", corpus],
        cwd=tmp_path,
        env=command_environment(),
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # on Linux, this means that the other end is closed
            break
        if not chunk:
            break
        shown += chunk
    os.close(terminal)
    assert process.wait(60) == 0, shown
    bars = [part.strip() for part in re.split(r"[\r\n]", shown.decode()) if part.startswith("Training:")]
    pattern = (
        r"Training: +\d+%\|.*\| \d+/20 \[\d\d:\d\d, "
        r"loss=\d\.\d{4}, acc=\d+\.\d%, tps=\d+\.\d, lr=\d\.\d\de-0\d, eta=\d+\.\d[smh]\]"
    )
    assert re.fullmatch(pattern, bars[-1]) and "20/20" in bars[-1] and "eta=0.0s" in bars[-1], bars[-1]
    assert all(len(bar) <= 100 for bar in bars)


def test_auto_reports_the_fallback_everywhere(tmp_path: Path, run_command: Run) -> None:
    flags = "--model-size tiny --max-seq-length 32 --vocab-size 400 --steps 3 --warmup-steps 1".split()
    since = time.monotonic()
    done = run_command(*flags, cwd=tmp_path)
    assert time.monotonic() - since < 40
    end = ". Using the embedded Python library instead. To require SlimPajama: --dataset slimpajama"
    (note,) = [line.removesuffix(end) for line in done.stdout.splitlines() if line.endswith(end)]
    assert re.fullmatch(r"SlimPajama is unreachable \(.+\)", note)
    assert note in next(line for line in done.stdout.splitlines() if line.startswith("Data:"))
    assert table(tmp_path / "training_viz", "SELECT source, note FROM run") == [("python-library", note)]
    assert read_json(tmp_path / "training_viz" / "run.json")["note"] == note


@pytest.mark.parametrize("name", ["slimpajama", pytest.param("someone/something", marks=pytest.mark.full)])
def test_a_named_dataset_is_never_replaced(tmp_path: Path, run_command: Run, name: str) -> None:
    done = run_command("--dataset", name, "--steps", 3, cwd=tmp_path, check=3)
    assert done.stderr.count("\n") == 1 and "train_slimpajama.py: " in done.stderr
    assert not list(tmp_path.rglob("*.png")) and not list(tmp_path.rglob("run.db"))


def test_a_users_mistake_is_one_line_and_exit_2(
    train: Train, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train("--steps", 2) == 0
    before = table(tmp_path / "training_viz", STEPS)
    (tmp_path / "bad.model").write_text("not a model")
    (tmp_path / "array.json").write_text('[{"text": "one"}]')
    (tmp_path / "good.model").write_bytes(table(tmp_path / "training_viz", "SELECT tokenizer FROM run")[0][0])
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
        (["--dataset", "empty.jsonl"], "the data are empty"),
        (["--dataset", "nulls.jsonl"], "text is not a string"),
        (["--text-column", "body"], "'text'"),
        (["--viz-dir", "file/viz"], "can't be written"),
        (["--vocab-size", 500, "--tokenizer", "good.model"], "vocabulary of 400"),
        (["--prompt", "\udcff"], "--prompt"),
        (["--dataset", "python-library", "--dataset-split", "test"], "--dataset-split"),
        (["--tokenizer", "good.model", "--pretrained-checkpoint", "checkpoints"], "pass only one"),
        (["--max-seq-length", 10**9], "--max-seq-length"),
        (["--device", "cuda:7"], "--device cuda:7"),
        (["--pretrained-checkpoint", "missing.bin"], "missing.bin"),
        (["--resume", "nonsense"], "nonsense"),
    ]
    for flags, part in mistakes:
        capsys.readouterr()
        assert train(*flags) == 2, flags
        assert part in error_line(capsys)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train("--steps", 2) == 2
    assert table(tmp_path / "training_viz", STEPS) == before
    assert not (tmp_path / "training_viz" / "earlier").exists()


def test_help_and_version(capsys: Capture) -> None:
    for flag in ("--help", "--version"):
        with pytest.raises(SystemExit, match="0"):
            main([flag])
    said = capsys.readouterr().out
    assert "--max-seq-length" in said
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert said.endswith(f"train_slimpajama {project['version']}\n")


def test_a_run_imports_no_library_that_it_does_not_need(tmp_path: Path, corpus: Path) -> None:
    """The compiler alone costs a second per start; torch imports it at the first step of a `torch.optim.Optimizer`."""
    hub = {"datasets", "huggingface_hub", "pyarrow", "pandas"}
    libraries = {"torch._dynamo", "tokenizers", "safetensors", "matplotlib", *hub}
    code = f"""
import sys, train_slimpajama
train_slimpajama.main()
import trainer.generate
print("imported:", {libraries} & sys.modules.keys())
"""
    assert "imported: set()" in run_code(code, [*SMALL, "--dataset", corpus, "--steps", 4], tmp_path)[1]


@pytest.mark.parametrize(
    ("flags", "kept"),
    [(["--checkpoint-interval", "10"], 10), pytest.param(["--no-checkpoint"], 0, marks=pytest.mark.full)],
)
def test_a_full_disk_is_one_line_and_exit_5(tmp_path: Path, corpus: Path, flags: list[str], kept: int) -> None:
    """No file may exceed 300 kB, so the first checkpoint can't be written; without checkpoints, the store later."""
    words = [*SMALL, "--dataset", corpus, "--repeat", "--steps", 3000, *flags]
    code, _, error = run_code(LIMITED, words, tmp_path)
    lines = [line for line in error.splitlines() if line.startswith("train_slimpajama.py: ")]
    assert code == 5 and len(lines) == 1 and "Traceback" not in error, error
    assert not list(tmp_path.rglob("*.tmp"))
    assert len(table(tmp_path / "training_viz", STEPS)) >= kept


LIMITED = """
import resource, sys
from trainer.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
sys.exit(main())
"""


@pytest.mark.full
def test_a_closed_standard_output_does_not_end_the_run(tmp_path: Path, corpus: Path) -> None:
    with start([*SMALL, "--steps", 200, "--dataset", corpus], tmp_path) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(300) == 0
    assert table(tmp_path / "training_viz", "SELECT count(*) FROM steps") == [(200,)]


def test_a_terminal_that_cannot_show_arrows(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="latin-1", write_through=True))
    assert train("--steps", 3) == 0
    assert b"Loss " in shown.getvalue() and b" ? " in shown.getvalue()
