"""`python -m trainer.generate` as a user runs it, on checkpoints created here."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import PROJECT
from tests.trainer.model.test_language_model import rough_model
from trainer.base.checkpoint_file import write_state
from trainer.base.device import choose_dtype
from trainer.config import MODEL_SIZES
from trainer.data.tokenizer import Tokenizer
from trainer.generate import main
from trainer.model.language_model import LanguageModel
from trainer.run.checkpoints import CheckpointManager

PROMPT = "the café is"

Generate = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with checkpoints after 5, 20 and 100 documents, each with different weights."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "checkpoints").mkdir()
    tokenizer = Tokenizer.train(["the café is open, the river is wide, \U0001f600\n"] * 20)
    for step in (5, 20, 100):
        model = rough_model(vocab_size=tokenizer.vocab_size, seed=step)
        state = {**model.checkpoint_state(), "tokenizer": tokenizer.model_bytes, "global_step": step}
        write_state(CheckpointManager(folder / "checkpoints").path(step), state)
    return folder


@pytest.fixture
def generate(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Generate:
    """Run the command in `folder`; return its exit code, standard output and standard error."""
    monkeypatch.chdir(folder)

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        return main(["--device", "cpu", *map(str, arguments)]), *capsys.readouterr()

    return run


def expected(path: Path, new_tokens: int, **options: float) -> str:
    """The text that the model itself generates."""
    state = torch.load(path, weights_only=True)
    tokenizer = Tokenizer.from_bytes(state["tokenizer"])
    model = LanguageModel.from_checkpoint(state).to(choose_dtype("auto", torch.device("cpu")))
    ids = tokenizer.EncodeAsIds(PROMPT)
    tokens = model.stream(ids, len(ids) + new_tokens, **options)
    return PROMPT + "".join(tokenizer.decode_stream(tokens)) + "\n"


def test_the_newest_checkpoint_continues_the_prompt(generate: Generate, folder: Path) -> None:
    text = expected(folder / "checkpoints/checkpoint_step_100.bin", 30)
    assert generate("--prompt", PROMPT, "--max-new-tokens", 30) == (0, text, "")


def test_a_named_checkpoint_and_every_option_take_effect(generate: Generate, folder: Path) -> None:
    path = folder / "checkpoints/checkpoint_step_20.bin"
    options = ["--temperature", 1.5, "--top-k", 0, "--seed", 3, "--max-new-tokens", 25]
    wanted = expected(path, 25, temperature=1.5, top_k=None, seed=3)
    assert generate(path, "--prompt", PROMPT, *options) == (0, wanted, "")
    assert wanted not in {
        expected(path, 25, temperature=1.5, top_k=None, seed=4),
        expected(path, 25, temperature=1.5, top_k=2, seed=3),
        expected(path, 25, temperature=0.2, top_k=None, seed=3),
    }


def test_a_damaged_newest_checkpoint_is_skipped_and_reported(generate: Generate, folder: Path, tmp_path: Path) -> None:
    for file in (folder / "checkpoints").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    newest = tmp_path / "checkpoint_step_100.bin"
    newest.write_bytes(newest.read_bytes()[:-9])
    code, out, err = generate("--prompt", PROMPT, "--max-new-tokens", 5, "--checkpoint-dir", tmp_path)
    assert (code, out) == (0, expected(tmp_path / "checkpoint_step_20.bin", 5))
    assert err.count("\n") == 1 and "checkpoint_step_100.bin is damaged" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prompt", ""], "--prompt is empty"),
        ([], "--prompt"),
        (["--prompt", "x", "--checkpoint-dir", "nowhere"], "no checkpoint in nowhere"),
        (["missing.bin", "--prompt", "x"], "missing.bin can't be read as a checkpoint: No such file or directory"),
        (["weights.bin", "--prompt", "x"], "weights.bin contains weights but no tokenizer"),
        (["--prompt", "x", "--temperature", "-1"], "--temperature"),
        (["--prompt", "x", "--top-k", "many"], "--top-k"),
        (["--prompt", "x", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["--prompt", "x", "--device", "abacus"], "abacus"),
        (["--prompt", "x", "--tempo", "1"], "--tempo"),
        (["--prompt", "\udcff"], "not valid Unicode"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(generate: Generate, arguments: list[str], says: str) -> None:
    LanguageModel(MODEL_SIZES["tiny"], 300).save_checkpoint("weights.bin")
    code, out, err = generate(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1) and says in err


def test_a_diverged_checkpoint_is_an_error(generate: Generate, tmp_path: Path) -> None:
    state = torch.load("checkpoints/checkpoint_step_5.bin", weights_only=True)
    state["model"]["model.norm.weight"].fill_(torch.nan)
    torch.save(state, tmp_path / "nan.bin")
    code, _, err = generate(tmp_path / "nan.bin", "--prompt", PROMPT)
    assert code == 4 and "not finite" in err


def test_text_is_printed_as_it_is_generated_until_ctrl_c_or_the_reader_leaves(folder: Path) -> None:
    words = ["-m", "trainer.generate", "--prompt", PROMPT, "--max-new-tokens", str(10**7), "--device", "cpu"]
    for interrupt, code in ((True, 130), (False, 0)):
        with subprocess.Popen(
            [sys.executable, *words],
            cwd=folder,
            env={"PYTHONPATH": str(PROJECT), "PYTHONIOENCODING": "utf-8"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs of a script ignore it
        ) as process:
            assert process.stdout is not None and process.stderr is not None
            # Long before ten million tokens:
            assert process.stdout.read(len(PROMPT) + 40).startswith(PROMPT.encode())
            process.send_signal(signal.SIGINT) if interrupt else process.stdout.close()
            assert process.wait(timeout=60) == code
            assert process.stderr.read() == b""
