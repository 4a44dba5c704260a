"""`python -m trainer.evaluate` as a user runs it, on the checkpoint of a short run."""

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

from tests.conftest import PROJECT, make_texts, write_jsonl
from tests.runs.conftest import QUICK, Capture, table
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
    """The folder of a run on 30 documents from two sources, with an evaluation at its end."""
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


def measured(capsys: Capture, *arguments: object) -> dict[str, list[float]]:
    """Source → documents, predictions, nats per token, perplexity, bits per byte, accuracy in percent."""
    capsys.readouterr()
    assert main(["--device", "cpu", *map(str, arguments)]) == 0
    rows = NUMBERS.findall(capsys.readouterr().out)
    return {name: [float(number.replace(",", "")) for number in numbers] for name, *numbers in rows if name != ""}


def trained() -> tuple[LanguageModel, Tokenizer]:
    state = torch.load("checkpoints/checkpoint_step_30.bin", weights_only=True)
    return LanguageModel.from_checkpoint(state), Tokenizer.from_bytes(state["tokenizer"])


def save_bare(path: Path) -> None:
    """Save model and tokenizer without the run."""
    model, tokenizer = trained()
    torch.save({**model.checkpoint_state(), "tokenizer": tokenizer.model_bytes}, path)


def test_the_numbers_equal_those_of_the_run(capsys: Capture, tmp_path: Path) -> None:
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
    # The same documents from a file:
    lines = Path("documents.jsonl").read_text().splitlines(keepends=True)
    held_out = [line for line in lines if is_held_out(hash_text(json.loads(line)["text"]))]
    (tmp_path / "held_out.jsonl").write_text("".join(held_out))
    assert measured(capsys, "--text", tmp_path / "held_out.jsonl") == found
    (tmp_path / "other.jsonl.gz").write_bytes(gzip.compress("".join(held_out[1:]).encode()))
    assert measured(capsys, "--text", tmp_path / "other.jsonl.gz")["all"] != found["all"]


def test_every_token_is_measured_once(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_skipped_documents_are_counted_by_reason(capsys: Capture, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [*make_texts(3), "short", None])
    rows.write_text(rows.read_text().replace('"text"', '"body"') + "no JSON\n")
    found = measured(capsys, "--text", rows, "--text-column", "body", "--max-seq-length", 20)
    assert found["all"][:2] == [3, 3 * 19]
    assert main(["--text", str(rows), "--text-column", "body"]) == 0
    assert "Skipped: 1 not JSON, 1 shorter than 10 characters, 1 text is not a string\n" in capsys.readouterr().out


def test_a_source_name_cannot_send_control_characters_to_the_terminal(capsys: Capture, tmp_path: Path) -> None:
    rows = [{"text": text, "source": f"\x1b[31m{number}"} for number, text in enumerate(make_texts(23))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["--text", str(tmp_path / "rows.jsonl")]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and out.count("\ufffd[31m") == 20
    assert out.splitlines()[-1] == "(3 more sources are included only in `all`)"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--text", "nowhere.txt"], "--text nowhere.txt: no such file"),
        (["--text", "training_viz"], "--text training_viz is a folder: pass one file"),
        (["--text", "empty.txt"], "--text empty.txt: nothing to predict"),
        (["--text", "empty.jsonl"], "--text empty.jsonl: nothing to predict"),
        (["--text", "latin.txt"], "latin.txt is not UTF-8 text (byte 3)"),
        (["--text", "documents.jsonl", "--text-column", "body"], "has no column 'body': it has 'text', 'source'"),
        (["--max-seq-length", "1"], "--max-seq-length (max_seq_length) must be at least 2, not 1"),
        (["--max-seq-length", "many"], "--max-seq-length"),
        (["--checkpoint-dir", "nowhere"], "no checkpoint in nowhere"),
        (["weights.bin", "--text", "documents.jsonl"], "weights.bin contains weights but no tokenizer"),
        (["bare.bin"], "bare.bin does not name the held-out documents"),
        (["--device", "abacus"], "abacus"),
        (["--txt", "x"], "--txt"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys: Capture, arguments: list[str], says: str) -> None:
    Path("empty.txt").write_text("")
    Path("empty.jsonl").write_text("")
    Path("latin.txt").write_bytes("caf\u00e9 and more".encode("latin-1"))
    trained()[0].save_checkpoint("weights.bin")
    save_bare(Path("bare.bin"))
    capsys.readouterr()
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and says in err


def test_a_checkpoint_without_a_run_can_be_evaluated_on_a_text(capsys: Capture, tmp_path: Path) -> None:
    save_bare(tmp_path / "bare.bin")
    (tmp_path / "book.txt").write_text(" ".join(make_texts(9)))
    found = measured(capsys, tmp_path / "bare.bin", "--text", tmp_path / "book.txt")
    count, tokens, *_ = found["all"]
    assert count == math.ceil(tokens / 255)  # windows of the default length


def test_changed_data_are_rejected(capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    documents = Path("documents.jsonl").read_bytes()
    try:
        Path("documents.jsonl").write_bytes(documents + b'{"text": "one more document"}\n')
        assert main([]) == 2
        assert "documents.jsonl has changed" in capsys.readouterr().err
    finally:
        Path("documents.jsonl").write_bytes(documents)
    checkpoint = Path("checkpoints/checkpoint_step_30.bin").resolve()
    monkeypatch.chdir(tmp_path)  # the run's data are found from any folder
    assert measured(capsys, checkpoint)["all"][0] >= 5


def shell(module: str, end: str = "") -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `python -m trainer.MODULE END` in a shell."""
    line = f"set -o pipefail; {sys.executable} -m trainer.{module} {end}"
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.full
@pytest.mark.parametrize("module", ["evaluate --text few.jsonl", "export --checkpoint-dir checkpoints out"])
def test_an_output_that_fails_is_one_line(module: str, folder: Path) -> None:
    write_jsonl(folder / "few.jsonl", make_texts(3))
    assert shell(module, "> /dev/full") == (5, "", "machine failure: [Errno 28] No space left on device\n")
    for end in ("| true", ">&-"):
        assert shell(module, end) == (0, "", "")


def test_a_pipe_is_read_as_text_and_a_closed_input_is_an_error() -> None:
    code, out, _ = shell("evaluate --text", "<(head -n 3 documents.jsonl)")
    assert code == 0 and "windows of 48 tokens" in out
    assert shell("evaluate --text", "- <&-") == (2, "", "--text -: standard input is closed: pass a file or a pipe\n")
