"""Shared by all tests: generated documents, and the command run as a user runs it."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

# Several tests run at once and start processes, so a second thread for a tiny product would only wait for a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

PROJECT = Path(__file__).resolve().parent.parent

Run = Callable[..., subprocess.CompletedProcess[str]]


def make_texts(count: int, seed: int = 0) -> list[str]:
    """Different texts of 40 to 200 words, from which a tiny model can learn."""
    generator = random.Random(seed)
    words = ["".join(generator.choices("abcdefghilmnoprstu", k=generator.randint(2, 8))) for _ in range(300)]
    return [
        f"Document {number}. " + " ".join(generator.choices(words, k=generator.randint(40, 200))) + "."
        for number in range(count)
    ]


def write_jsonl(path: Path, texts: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 400 documents."""
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "documents.jsonl", make_texts(400))


@pytest.fixture(scope="session")
def run_command() -> Run:
    """Run `python train_slimpajama.py …` in its own folder, without a network, and wait for its end."""

    def run(
        *arguments: object,
        cwd: Path,
        check: int | None = 0,
        module: str | None = None,
        environment: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        start = [sys.executable, "-m", module] if module else [sys.executable, str(PROJECT / "train_slimpajama.py")]
        done = subprocess.run(
            [*start, *map(str, arguments)],
            cwd=cwd,
            env={**command_environment(), **(environment or {})},
            capture_output=True,
            text=True,
            timeout=900,  # a shared machine
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if check is not None:
            assert done.returncode == check, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


def command_environment() -> dict[str, str]:
    """The user's environment, with a Hub address without a server, so that no test depends on a network."""
    return {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1"}
