"""`python -m trainer.generate` as a user runs it, on a checkpoint made here."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainer.base.checkpoint_file import write_state
from trainer.base.device import choose_dtype
from trainer.config import MODEL_SIZES
from trainer.data.tokenizer import Tokenizer
from trainer.generate import main
from trainer.model.language_model import LanguageModel
from trainer.run.checkpoints import CheckpointManager

ROOT = Path(__file__).parents[2]
PROMPT = "the café is"

Generate = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a run leaves it: the states after 5, 20 and 100 documents, each of other weights."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "checkpoints").mkdir()
    tokenizer = Tokenizer.train(["the café is open, the river is wide, \U0001f600\n"] * 20)
    for step in (5, 20, 100):
        model = LanguageModel(MODEL_SIZES["tiny"], tokenizer.vocab_size, seed=step)
        with torch.no_grad():  # fresh weights are nearly zero: every token as likely as the next
            for weight in model.parameters():
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(step)), alpha=0.15)
        state = {**model.checkpoint_state(), "tokenizer": tokenizer.model_bytes, "global_step": step}
        write_state(CheckpointManager(folder / "checkpoints").path(step), state)
    return folder


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "trainer.generate", *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", **more}


@pytest.fixture
def generate(folder: Path) -> Generate:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments), cwd=folder, env=environment(), capture_output=True, encoding="utf-8", timeout=60
        )

    return run


def expected(path: Path, new_tokens: int, **options: float) -> str:
    """What the model itself says."""
    state = torch.load(path, weights_only=True)
    tokenizer = Tokenizer.from_bytes(state["tokenizer"])
    model = LanguageModel.from_checkpoint(state).to(choose_dtype("auto", torch.device("cpu")))
    ids = tokenizer.EncodeAsIds(PROMPT)
    tokens = model.stream(ids, len(ids) + new_tokens, **options)
    return PROMPT + "".join(tokenizer.decode_stream(tokens)) + "\n"


def test_the_newest_checkpoint_goes_on_from_the_prompt(generate: Generate, folder: Path) -> None:
    done = generate("--prompt", PROMPT, "--max-new-tokens", 30, "--device", "cpu")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == expected(folder / "checkpoints/checkpoint_step_100.bin", 30)


def test_a_named_checkpoint_and_every_option_count(generate: Generate, folder: Path) -> None:
    path = folder / "checkpoints/checkpoint_step_20.bin"
    options = ["--temperature", 1.5, "--top-k", 0, "--seed", 3, "--max-new-tokens", 25, "--device", "cpu"]
    done = generate(path, "--prompt", PROMPT, *options)
    wanted = expected(path, 25, temperature=1.5, top_k=None, seed=3)
    assert (done.returncode, done.stdout) == (0, wanted)
    assert wanted not in {
        expected(path, 25, temperature=1.5, top_k=None, seed=4),
        expected(path, 25, temperature=1.5, top_k=2, seed=3),
        expected(path, 25, temperature=0.2, top_k=None, seed=3),
    }


def test_a_damaged_newest_checkpoint_is_passed_by_and_said(generate: Generate, folder: Path, tmp_path: Path) -> None:
    for file in (folder / "checkpoints").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    newest = tmp_path / "checkpoint_step_100.bin"
    newest.write_bytes(newest.read_bytes()[:-9])
    done = generate("--prompt", PROMPT, "--max-new-tokens", 5, "--checkpoint-dir", tmp_path, "--device", "cpu")
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert "checkpoint_step_100.bin is damaged" in done.stderr
    assert done.stdout == expected(tmp_path / "checkpoint_step_20.bin", 5)


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
def test_bad_input_is_one_line_and_exit_code_2(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(folder)
    LanguageModel(MODEL_SIZES["tiny"], 300).save_checkpoint("weights.bin")
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert err.count("\n") == 1


def test_bad_input_ends_the_process_with_exit_code_2(generate: Generate) -> None:
    done = generate("missing.bin", "--prompt", "x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "missing.bin can't be read as a checkpoint: No such file or directory\n"


def test_a_diverged_checkpoint_says_so(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.load(folder / "checkpoints/checkpoint_step_5.bin", weights_only=True)
    state["model"]["model.norm.weight"].fill_(torch.nan)
    torch.save(state, tmp_path / "nan.bin")
    assert main([str(tmp_path / "nan.bin"), "--prompt", PROMPT, "--device", "cpu"]) == 4
    assert "not finite" in capsys.readouterr().err


def test_text_comes_as_it_is_made_and_ctrl_c_ends_it(folder: Path) -> None:
    arguments = command("--prompt", PROMPT, "--max-new-tokens", 10**7, "--device", "cpu")
    with subprocess.Popen(
        arguments,
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a script's background job has it ignored
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(len(PROMPT) + 40).startswith(PROMPT.encode())  # long before ten million tokens
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stderr.read() == b""


def test_a_reader_that_leaves_is_no_error(folder: Path) -> None:
    arguments = command("--prompt", PROMPT, "--max-new-tokens", 10**7, "--device", "cpu")
    with subprocess.Popen(
        arguments, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(20)
        process.stdout.close()
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == b""
