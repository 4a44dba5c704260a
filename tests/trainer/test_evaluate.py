"""`python -m trainer.evaluate` as a user runs it, on the checkpoint of a run made here."""

import gzip
import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import PROJECT, Run, make_texts, write_jsonl
from tests.runs.conftest import QUICK, table
from trainer.cli import main as train
from trainer.data.document_filter import hash_text, is_held_out
from trainer.data.tokenizer import Tokenizer
from trainer.evaluate import main, windows
from trainer.model.language_model import LanguageModel

FLAGS = (
    "--model-size tiny --max-seq-length 48 --vocab-size 400 --dtype fp32 --device cpu --warmup-steps 10 "
    "--viz-interval 1000 --display-samples 1000 --dataset documents.jsonl --evaluation-interval 30"
).split()
NUMBERS = re.compile(r"^(\S*) +([\d,]+) +([\d,]+) +([\d.]+) +([\d.,]+) +([\d.]+) +([\d.]+)%$", re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a run of 30 documents was measured at its end. Its documents are of two sources."""
    folder = tmp_path_factory.mktemp("run")
    rows = [{"text": text, "source": ("code", "docs")[number % 2]} for number, text in enumerate(make_texts(900))]
    (folder / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train([*FLAGS, "--steps", "30"], QUICK) == 0
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def measured(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, list[float]]:
    """Source → documents, predictions, nats per token, perplexity, bits per byte, accuracy in percent."""
    capsys.readouterr()
    assert main(["--device", "cpu", *map(str, arguments)]) == 0
    out = capsys.readouterr().out
    return {
        name: [float(number.replace(",", "")) for number in numbers]
        for name, *numbers in NUMBERS.findall(out)
        if name != ""
    }


def trained() -> tuple[LanguageModel, Tokenizer]:
    state = torch.load("checkpoints/checkpoint_step_30.bin", weights_only=True)
    return LanguageModel.from_checkpoint(state), Tokenizer.from_bytes(state["tokenizer"])


def test_it_finds_what_the_run_itself_has_found(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    columns = "documents, tokens, loss, bits_per_byte, accuracy"
    rows = table(Path("training_viz"), f"SELECT source, {columns} FROM evaluations WHERE step = 29")
    recorded = {row[0] or "all": dict(zip(columns.split(", "), row[1:], strict=True)) for row in rows}
    assert set(recorded) == {"all", "code", "docs"} and recorded["all"]["documents"] >= 5
    found = measured(capsys)
    assert set(found) == set(recorded)
    for name, (documents, tokens, loss, perplexity, bits, accuracy) in found.items():
        row = recorded[name]
        assert (documents, tokens) == (row["documents"], row["tokens"])
        assert loss == pytest.approx(row["loss"], abs=6e-5) and bits == pytest.approx(row["bits_per_byte"], abs=6e-5)
        assert perplexity == pytest.approx(math.exp(row["loss"]), abs=0.006)
        assert accuracy == pytest.approx(100 * row["accuracy"], abs=0.06)
    # The same documents as a file of one's own:
    held_out = [
        line
        for line in Path("documents.jsonl").read_text().splitlines(keepends=True)
        if is_held_out(hash_text(json.loads(line)["text"]))
    ]
    (tmp_path / "held_out.jsonl").write_text("".join(held_out))
    assert measured(capsys, "--text", tmp_path / "held_out.jsonl") == found
    (tmp_path / "other.jsonl.gz").write_bytes(gzip.compress("".join(held_out[1:]).encode()))
    assert measured(capsys, "--text", tmp_path / "other.jsonl.gz")["all"] != found["all"]


def test_a_text_is_measured_whole_each_token_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\n\n".join(make_texts(4, seed=8))
    (tmp_path / "book.txt").write_text(text)
    model, tokenizer = trained()
    ids = tokenizer.EncodeAsIds(text)
    assert len(ids) > 300
    samples = list(windows(text, "book", tokenizer, 48))
    assert [token for sample in samples for token in sample.target_ids] == ids[1:]
    assert max(len(sample.ids) for sample in samples) == 48
    assert sum(sample.predicted_bytes for sample in samples) == len(text.encode()) - len(tokenizer.DecodeIds(ids[:1]))
    nats = 0.0
    for sample in samples:
        logits = model(torch.tensor([sample.input_ids]))[0]
        nats += torch.nn.functional.cross_entropy(logits, torch.tensor(sample.target_ids), reduction="sum").item()
    found = measured(capsys, "--text", tmp_path / "book.txt")
    assert list(found) == ["all"]
    count, tokens, loss, _, bits, _ = found["all"]
    assert (count, tokens) == (len(samples), len(ids) - 1)
    assert loss == pytest.approx(nats / tokens, abs=6e-5)
    assert bits == pytest.approx(nats / math.log(2) / sum(sample.predicted_bytes for sample in samples), abs=6e-5)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert measured(capsys, "--text", "-") == found
    assert measured(capsys, "--text", tmp_path / "book.txt", "--max-seq-length", len(ids))["all"][:2] == [1, tokens]


def test_what_can_not_be_used_is_left_out_and_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [*make_texts(3), "short", None])
    rows.write_text(rows.read_text().replace('"text"', '"body"') + "no JSON\n")
    found = measured(capsys, "--text", rows, "--text-column", "body", "--max-seq-length", 20)
    assert found["all"][:2] == [3, 3 * 19]
    assert main(["--text", str(rows), "--text-column", "body"]) == 0
    said = "Left out: 1 not JSON, 1 shorter than 10 characters, 1 text is no string"
    assert said in capsys.readouterr().out.splitlines()


def test_a_name_from_a_file_can_not_steer_the_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = [{"text": text, "source": f"\x1b[31m{number}"} for number, text in enumerate(make_texts(23))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["--text", str(tmp_path / "rows.jsonl")]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and out.count("\ufffd[31m") == 20
    assert out.splitlines()[-1] == "(3 more sources are in `all` alone)"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--text", "nowhere.txt"], "--text nowhere.txt: no such file"),
        (["--text", "training_viz"], "--text training_viz: no such file"),
        (["--text", "empty.txt"], "--text empty.txt: nothing to predict"),
        (["--text", "empty.jsonl"], "--text empty.jsonl: nothing to predict"),
        (["--text", "latin.txt"], "latin.txt is no text in UTF-8 (byte 3)"),
        (["--text", "documents.jsonl", "--text-column", "body"], "has no column 'body': it has 'text', 'source'"),
        (["--max-seq-length", "1"], "--max-seq-length (max_seq_length) must be at least 2, not 1"),
        (["--max-seq-length", "many"], "--max-seq-length"),
        (["--checkpoint-dir", "nowhere"], "no checkpoint in nowhere"),
        (["weights.bin", "--text", "documents.jsonl"], "weights.bin holds weights but no tokenizer"),
        (["bare.bin"], "bare.bin does not say what its run held out"),
        (["--device", "abacus"], "abacus"),
        (["--txt", "x"], "--txt"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    Path("empty.txt").write_text("")
    Path("empty.jsonl").write_text("")
    Path("latin.txt").write_bytes("caf\u00e9 and more".encode("latin-1"))
    model, tokenizer = trained()
    model.save_checkpoint("weights.bin")
    torch.save({**model.checkpoint_state(), "tokenizer": tokenizer.model_bytes}, "bare.bin")
    capsys.readouterr()
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and says in err


def test_a_checkpoint_that_names_no_run_can_be_measured_on_a_text(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model, tokenizer = trained()
    torch.save({**model.checkpoint_state(), "tokenizer": tokenizer.model_bytes}, tmp_path / "bare.bin")
    (tmp_path / "book.txt").write_text(" ".join(make_texts(9)))
    found = measured(capsys, tmp_path / "bare.bin", "--text", tmp_path / "book.txt")
    count, tokens, *_ = found["all"]
    assert count == math.ceil(tokens / 255)  # windows of the default length


def test_data_that_have_changed_since_are_not_measured_instead(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    documents = Path("documents.jsonl").read_bytes()
    try:
        Path("documents.jsonl").write_bytes(documents + b'{"text": "one more document"}\n')
        assert main([]) == 2
        assert "documents.jsonl has changed" in capsys.readouterr().err
    finally:
        Path("documents.jsonl").write_bytes(documents)
    checkpoint = Path("checkpoints/checkpoint_step_30.bin").resolve()
    monkeypatch.chdir(tmp_path)  # from anywhere else, the run's own data are found
    assert measured(capsys, checkpoint)["all"][0] >= 5


@pytest.mark.parametrize(
    "module",
    ["evaluate --text few.jsonl", pytest.param("export --checkpoint-dir checkpoints out", marks=pytest.mark.full)],
)
def test_an_output_that_fails_is_one_line(module: str, folder: Path) -> None:
    write_jsonl(folder / "few.jsonl", make_texts(3))
    command = f"{sys.executable} -m trainer.{module}"

    def run(end: str) -> subprocess.CompletedProcess[str]:
        shell = ["bash", "-c", f"set -o pipefail; {command} {end}"]
        return subprocess.run(shell, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(PROJECT)})

    done = run("> /dev/full")
    assert (done.returncode, done.stderr) == (5, "machine failure: [Errno 28] No space left on device\n")
    for end in ("| true", ">&-"):
        done = run(end)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_pipe_is_a_text_and_a_closed_input_is_none(folder: Path) -> None:
    command = [sys.executable, "-m", "trainer.evaluate", "--text"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    by_pipe, closed = (
        subprocess.run(["bash", "-c", f"{' '.join(command)} {end}"], capture_output=True, text=True, env=environment)
        for end in ("<(head -n 3 documents.jsonl)", "- <&-")
    )
    assert by_pipe.returncode == 0 and "windows of 48 tokens" in by_pipe.stdout
    assert (closed.returncode, closed.stderr) == (2, "--text -: there is no standard input\n")


def test_the_command_itself(run_command: Run, folder: Path) -> None:
    done = run_command("--text", "nowhere.txt", module="trainer.evaluate", cwd=folder, check=2)
    assert done.stderr == "--text nowhere.txt: no such file, or one that can't be read\n"
