"""A checkpoint file can't run code or allocate more memory than it contains, and is refused in one line."""

import json
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import PROJECT
from trainer.base.checkpoint_file import read_state, write_state
from trainer.errors import UserError

STATE = {"format": "train_slimpajama.checkpoint", "version": 1, "model": {"w": torch.zeros(1000)}}


class Canary:
    """An object that creates a file if pickle is allowed to load it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return (Path.touch, (self.path,))


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_state(path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("place", ["config", "model", "optimizer"])
def test_nothing_in_a_checkpoint_can_run_code(tmp_path: Path, place: str) -> None:
    path, canary = tmp_path / "evil.bin", Canary(tmp_path / "ran")
    torch.save({**STATE, place: {"w": canary}}, path)
    refused(path)
    assert not (tmp_path / "ran").exists()
    torch.load(path, weights_only=False)  # the control
    assert (tmp_path / "ran").exists()


def compressed(path: Path) -> None:
    """A quarter of a gigabyte of zeros in a few hundred kB: torch would allocate all of it."""
    plain = path.with_name("plain")
    torch.save({**STATE, "model": {"w": torch.zeros(2**26)}}, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    plain.unlink()


MALFORMED: dict[str, Callable[[Path], None]] = {
    name: lambda path, weight=weight: torch.save({**STATE, "model": {"w": weight}}, path)
    for name, weight in {
        "sparse": torch.zeros(3, 3).to_sparse(),
        "one-number-expanded": torch.zeros(1).expand(10**12),
        "without-memory": torch.empty(10**12, device="meta"),
    }.items()
} | {"compressed": compressed, "old-format": lambda path: torch.save(STATE, path, _use_new_zipfile_serialization=False)}

READ = """
import resource, sys
from pathlib import Path
from trainer.base.checkpoint_file import read_state
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        read_state(Path(path))
        name = "nothing"
    except Exception as error:
        name = type(error).__name__
    print(Path(path).name, name, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_false_sizes_allocate_no_memory(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in MALFORMED]
    for path in paths:
        MALFORMED[path.name](path)
    done = subprocess.run([sys.executable, "-c", READ, *paths], cwd=PROJECT, capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [(name, raised) for name, raised, _ in lines] == [(path.name, "UserError") for path in paths]
    assert all(int(kilobytes) < 100_000 for *_, kilobytes in lines), lines


def test_random_and_broken_bytes(tmp_path: Path) -> None:
    """Without a digest, so that the reader itself must detect it. Whatever it accepts is a dict of weights."""
    generator, path = random.Random(0), tmp_path / "file.bin"
    torch.save({**STATE, "config": {"a": [1, "b"]}}, path)
    whole = path.read_bytes()
    refusals = 0
    for number in range(300):
        content = bytearray(whole)
        if number % 3 == 0:
            content = bytearray(generator.randbytes(generator.randrange(2000)))
        elif number % 3 == 1:
            del content[generator.randrange(len(content)) :]
        else:
            for _ in range(generator.randrange(1, 20)):
                content[generator.randrange(len(content))] = generator.randrange(256)
        path.write_bytes(content)
        try:
            state = read_state(path)
        except UserError as error:
            refusals += 1
            assert "\n" not in str(error)
        else:
            assert isinstance(state["model"], dict)
    assert refusals > 200


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    weights: list[dict[str, Any]] = [{"model": [1]}, {"model": {"w": 3}}, {"model": {"w": torch.ones(2).long()}}]
    for number, change in enumerate([{"format": "other"}, {"version": 99}, *weights]):
        write_state(tmp_path / f"changed-{number}.bin", {**STATE, **change})
    torch.save([1, 2], tmp_path / "list.bin")
    (tmp_path / "text.bin").write_text("hello")
    (tmp_path / "empty.bin").touch()
    (tmp_path / "folder.bin").mkdir()
    (tmp_path / "json.bin").write_text(json.dumps({"model": {}}))
    for path in [*tmp_path.glob("*.bin"), tmp_path / "missing.bin"]:
        refused(path)
