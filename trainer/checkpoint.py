"""Whole states to disk and back. Knows nothing of what is in them."""

import contextlib
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from trainer.durable import replace_file, sha256_of_file
from trainer.errors import UserError

_NAME = re.compile(r"checkpoint_step_(\d+)\.bin")


class CheckpointManager:
    """A folder of checkpoints: `checkpoint_step_N.bin` is the state after N documents, `….bin.sha256` its digest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        return self.folder / f"checkpoint_step_{step}.bin"

    def all(self) -> list[tuple[int, Path]]:
        """(N, path) of every checkpoint by name, oldest first; whether they are whole is not looked at."""
        found = [(int(match[1]), path) for path in self.folder.glob("*.bin") if (match := _NAME.fullmatch(path.name))]
        return sorted(found)

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write the state after `step` documents; it gets its name only when it and its digest are safely on disk.

        Raises:
            OSError: it could not be written; what was there before is untouched.
        """
        path = self.path(step)

        def write(file: BinaryIO) -> None:
            torch.save(dict(state), file)

        def keep_digest(aside: Path) -> None:
            line = f"{sha256_of_file(aside)}  {path.name}\n".encode()
            replace_file(_digest_path(path), lambda file: _write_all(file, line))

        replace_file(path, write, before_naming=keep_digest)
        return path

    def newest_valid(self, refused: Callable[[Path, str], None]) -> Path | None:
        """The newest checkpoint that is whole, or None. `refused` is told of each newer one that is not, and why."""
        for _, path in reversed(self.all()):
            fault = fault_of(path)
            if not fault:
                return path
            refused(path, fault)
        return None


def fault_of(path: Path) -> str:
    """Why the file's bytes are not those that were saved, or nothing. Without a digest it is taken as it is."""
    digest = _digest_path(path)
    if not digest.is_file():
        return ""
    expected = digest.read_text(encoding="ascii", errors="replace").split(maxsplit=1)
    if not expected or sha256_of_file(path) != expected[0]:
        return "its bytes are not those that were saved (SHA-256 differs)"
    return ""


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a state; tensors come to the CPU. Nothing in the file can run code (`weights_only`).

    Raises:
        UserError: no such file, not a checkpoint, or damaged.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    fault = fault_of(path)
    if fault:
        raise UserError(f"{path} is damaged: {fault}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is not a checkpoint, or is damaged ({str(error).splitlines()[0][:120]})") from error
    if not isinstance(state, dict) or state.get("format") != "train_slimpajama.checkpoint":
        raise UserError(f"{path} is not a checkpoint of train_slimpajama")
    return state


def remove_unfinished(folder: Path) -> None:
    """Delete what a killed save left behind."""
    for path in folder.glob(".checkpoint_step_*.tmp"):
        with contextlib.suppress(OSError):
            path.unlink()


def _digest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _write_all(file: BinaryIO, content: bytes) -> None:
    file.write(content)
