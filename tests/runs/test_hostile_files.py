"""Checkpoints, configs and tokenizers from others: no code in them runs, and each mistake is one clear line."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runs.conftest import Capture, Train, error_line
from tests.trainer.base.test_checkpoint_file import Canary
from trainer.base.checkpoint_file import read_state, write_state
from trainer.run.checkpoints import RUN_STATE, misfit


@pytest.fixture
def state(train: Train, tmp_path: Path) -> dict[str, Any]:
    assert train("--steps", 20) == 0
    return read_state(tmp_path / "checkpoints" / "checkpoint_step_20.bin")


def put(state: Any, names: str, value: object) -> None:
    *before, last = names.split("/")
    for name in before:
        state = state[int(name) if isinstance(state, list) else name]
    state[last] = value


HUGE = torch.zeros(1).expand(10**10)
WRONG_TYPES: list[tuple[str, object]] = [(name, value) for name in RUN_STATE for value in (3.5, "text", {"a": 1}, [[]])]
CHANGES: list[tuple[str, object]] = [
    *((name, None) for name in RUN_STATE),
    ("config/model_size", "huge"),
    ("config/num_steps", "many"),
    ("config/max_seq_length", 10**9),
    ("config/prompt", [[1]]),
    ("config/dtype", {}),
    ("config/learning_rates", 3),
    ("shape/layers", 10**9),
    ("shape/width", -1),
    ("vocab_size", 10**12),
    ("model/model.norm.weight", torch.zeros(65)),
    ("model/model.norm.weight", HUGE),
    ("model/extra", torch.zeros(1)),
    ("average/model.norm.weight", torch.zeros(65)),
    ("average/model.norm.weight", "text"),
    ("average/extra", torch.zeros(1)),
    ("recipe/half_life", 0.0),
    ("recipe/half_life", 1e20),
    ("recipe/extra", 1.0),
    ("optimizer/model.norm.weight", {}),
    ("optimizer/model.norm.weight/exp_avg", torch.zeros(1)),
    ("optimizer/model.norm.weight/exp_avg", HUGE),
    ("optimizer/model.norm.weight/step", torch.zeros(3)),
    ("samples/cursor/row", -5),
    ("samples/cursor/shard", 10**6),
    ("samples/passed_by", [[1]]),
    ("stability/history", {64: torch.zeros(2, 3)}),
    ("stability/counts", {"a": 1}),
    ("tally/totals", [1]),
    ("tally/averages", [[1.0]]),
    ("tally/texts", [[1.0, 2]]),
    ("tally/token_counts", {"counts": torch.tensor([-1]), "sum": 0.0}),
    ("tally/token_counts", {"counts": torch.zeros(1, dtype=torch.int64).expand(10**9), "sum": 0.0}),
    ("display/first_prompt", "def"),
    ("display/first_prompt", [10**9] * 3),
    ("probes/documents", [{"step": 3}]),
    ("probes/documents", [{"step": 3, "ids": [10**9] * 3}, {"step": 3, "ids": [1] * 10**5}, {"step": 3, "ids": []}]),
    ("tokenizer", b"no model"),
    ("source/name", "missing.jsonl"),
    ("source/revision", "other"),
    ("kernels/threads", 10**9),
    ("step", -1),
    ("health/last_update", {"step": "x"}),
]


@pytest.mark.full
@pytest.mark.parametrize("changes", [CHANGES, WRONG_TYPES], ids=["values", "types"])
def test_a_checkpoint_that_was_tampered_with(
    state: dict[str, Any], train: Train, tmp_path: Path, capsys: Capture, changes: list[tuple[str, object]]
) -> None:
    """Any change leads to exit 2 and one line, or to a normal run if the change is harmless."""
    path, harmless = tmp_path / "checkpoints" / "checkpoint_step_20.bin", 0
    for names, value in changes:
        changed = copy.deepcopy(state)
        put(changed, names, value)
        write_state(path, changed)
        capsys.readouterr()
        code = train("--resume", "--steps", 21)
        error = capsys.readouterr().err
        if code == 0:
            harmless += 1
            path.with_name("checkpoint_step_21.bin").unlink(missing_ok=True)
        else:
            assert (code, error.count("\n")) == (2, 1), (names, value, error)
    # A key that is never read, a cursor after the end, more threads than CPUs, prompts or probes with impossible ids.
    assert harmless <= 6


def test_a_complete_state_is_accepted_and_each_part_is_required(state: dict[str, Any]) -> None:
    assert misfit(state) == ""
    for name in RUN_STATE:
        assert misfit({key: value for key, value in state.items() if key != name}) == name


def test_code_in_a_checkpoint_never_runs_and_the_previous_one_is_used(
    state: dict[str, Any], train: Train, tmp_path: Path, capsys: Capture
) -> None:
    canary = tmp_path / "ran"
    torch.save({**state, "config": Canary(canary)}, tmp_path / "checkpoints" / "checkpoint_step_30.bin")
    assert train("--resume", "--steps", 22) == 0
    assert not canary.exists()
    assert "checkpoint_step_30.bin" in capsys.readouterr().out


@pytest.mark.parametrize(
    "prefix",
    [*(pytest.param(name, marks=pytest.mark.full) for name in ("module.", "_orig_mod.")), "module._orig_mod.module."],
)
def test_prefixes_of_wrappers_are_removed(state: dict[str, Any], train: Train, tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "checkpoints" / "checkpoint_step_20.bin"
    write_state(path, {**state, "model": {prefix + name: weight for name, weight in state["model"].items()}})
    assert train("--resume", "--steps", 22) == 0
    assert train("--pretrained-checkpoint", path, "--steps", 3, "--out", "other") == 0


def deep(path: Path) -> None:
    path.write_text("[" * 100_000)


CONFIGS: list[bytes | Callable[[Path], None]] = [
    b"",
    b"\xff\xfe\x00",
    b"[1, 2]",
    b'{"num_steps": ' + b"9" * 5000 + b"}",
    b'{"num_steps": NaN}',
    b'{"num_steps": 1e999}',
    b'{"num_steps": true}',
    b'{"num_steps": {"a": 1}}',
    b'{"prompt": ["a", 1]}',
    b'{"prompt": "text"}',
    b'{"__class__": "os.system"}',
    b'{"dataset": "\\ud800"}',
    b'{"dataset": "a\\u0000b"}',
    b'{"viz_dir": "a\\u0000b"}',
    b'{"tokenizer": "a\\u0000b"}',
    deep,
]


def test_config_files(train: Train, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "config.json"
    for content in CONFIGS:
        content(path) if callable(content) else path.write_bytes(content)
        capsys.readouterr()
        known = json.loads(content) if isinstance(content, bytes) and b"dataset" in content else {}
        assert train("--config", path, "--steps", 2, *(["--dataset", "x.jsonl"] if not known else []), small=False) == 2
        error_line(capsys)


def test_tokenizer_files(state: dict[str, Any], train: Train, tmp_path: Path, capsys: Capture) -> None:
    """A truncated or random file is refused; one with a flipped bit is refused or still a tokenizer."""
    generator, path, whole = random.Random(0), tmp_path / "tokenizer.model", state["tokenizer"]
    for number in range(24):
        content = bytearray(whole)
        if number % 3 == 0:
            content = bytearray(generator.randbytes(generator.randrange(1, 3000)))
        elif number % 3 == 1:
            del content[generator.randrange(1, len(content) // 2) :]
        else:
            content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(content)
        capsys.readouterr()
        code = train("--tokenizer", path, "--steps", 1, "--out", "other")
        error = capsys.readouterr().err
        assert code in (0, 2) and (code == 0 or error.count("\n") == 1), error
