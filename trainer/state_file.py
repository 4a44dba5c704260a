"""A checkpoint's file: one plain dict, written whole, with its SHA-256 beside it, and read without running anything."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from trainer.durable import replace_file, sha256_of_file
from trainer.errors import UserError

STATE_HEADER: Mapping[str, Any] = {"format": "train_slimpajama.checkpoint", "version": 1}
"""What every such dict begins with. `model` (name → fp32 weight), `shape` and `vocab_size` always follow."""


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state`; the file gets its name only when it and its digest are safely on disk.

    Raises:
        OSError: it could not be written; what was there before is untouched.
    """

    def write_digest(aside: Path) -> None:
        line = f"{sha256_of_file(aside)}  {path.name}\n".encode()
        replace_file(digest_path(path), lambda file: (file.write(line), None)[1])

    def write(file: BinaryIO) -> None:
        try:
            torch.save(dict(state), file)
        except RuntimeError as error:
            # torch's own complaint about the half-written file hides why it is half: the disk.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise

    replace_file(path, write, before_naming=write_digest)


def read_state(path: str | Path) -> dict[str, Any]:
    """Read a state, tensors on the CPU. Nothing in the file can run code (`weights_only`).

    Raises:
        UserError: no such file, not a checkpoint, or damaged.
    """
    fault = fault_of(Path(path))
    if fault:
        raise UserError(f"{path} is damaged: {fault}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = error.strerror if isinstance(error, OSError) else "damaged, or something else"
        raise UserError(f"{path} can't be read as a checkpoint: {reason}") from None
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise UserError(f"{path} is no checkpoint: it holds no model weights")
    if state.get("format") != STATE_HEADER["format"] or state.get("version") != STATE_HEADER["version"]:
        raise UserError(
            f"{path} is no checkpoint that can be read here: its format is {state.get('format')!r}, version "
            f"{state.get('version')!r}, not {STATE_HEADER['format']!r}, version {STATE_HEADER['version']}"
        )
    return state


def digest_path(path: Path) -> Path:
    """The file beside `path` that holds its SHA-256, in the form that `sha256sum -c` reads."""
    return path.with_name(f"{path.name}.sha256")


def fault_of(path: Path) -> str:
    """Why the file's bytes are not those that were saved, or nothing. Without a digest it is taken as it is."""
    try:
        expected = digest_path(path).read_text(encoding="ascii", errors="replace").split()
        if not expected or sha256_of_file(path) != expected[0]:
            return "its bytes are not those that were saved (SHA-256 differs)"
    except FileNotFoundError:
        return ""
    except OSError as error:
        return error.strerror or str(error)
    return ""
