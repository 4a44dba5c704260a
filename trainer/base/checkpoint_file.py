"""Read and write checkpoint files: one plain dict with its SHA-256 in a second file. Reading one never runs code."""

import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from common.file_replacement import replace_file
from trainer.base.atomic_files import sha256_of_file
from trainer.base.device import is_out_of_memory
from trainer.errors import UserError

_NAME = re.compile(r"checkpoint_step_(\d+)\.bin")
_DAMAGED_OR_OTHER = "it is damaged or another kind of file"
STATE_HEADER: Mapping[str, Any] = {"format": "train_slimpajama.checkpoint", "version": 1}
"""The first keys of every such dict. `model` (name → fp32 weight), `shape` and `vocab_size` always follow."""


def write_state(path: Path, state: Mapping[str, Any], before_naming: Callable[[], None] = lambda: None) -> None:
    """Write `state`. The file gets its name only after it and its digest are safely on disk.

    Args:
        before_naming: called once the bytes are on disk, before the file gets its name.

    Raises:
        OSError: it could not be written; an existing file is unchanged.
    """
    is_new = not digest_path(path).exists()

    def write_digest(temporary: Path) -> None:
        before_naming()
        lines = [f"{sha256_of_file(temporary)}  {path.name}\n", *([] if is_new else _digests(path))]
        # While a file is replaced, both digests are valid: if the process is killed between the two renames, the old
        # file must not look damaged.
        _write_digests(path, lines)

    def write(file: BinaryIO) -> None:
        try:
            torch.save(dict(state), file)
        except RuntimeError as error:
            # torch complains about an incomplete file, which hides the disk's error.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise

    replace_file(path, write, durable=True, before_naming=write_digest)
    if not is_new:
        _write_digests(path, _digests(path)[:1])


def read_state(path: str | Path) -> dict[str, Any]:
    """Read a state, with tensors on the CPU. Nothing in the file can run code (`weights_only`).

    Raises:
        UserError: the file is missing, damaged, or not a checkpoint.
    """
    fault = fault_of(Path(path))
    if fault:
        raise UserError(f"{path} is damaged: {fault}")
    if fault := _why_not_open(Path(path)):
        raise UserError(f"{path} can't be read as a checkpoint: {fault}")
    try:
        with warnings.catch_warnings(action="ignore"):  # torch warns about what it finds in other programs' files
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from None
    except Exception as error:  # a parser may raise anything for arbitrary bytes
        if is_out_of_memory(error):
            raise
        raise UserError(f"{path} can't be read as a checkpoint: {_DAMAGED_OR_OTHER}") from None
    weights = [state.get("model"), state.get("average", {})] if isinstance(state, dict) else [None]
    if not all(isinstance(named, dict) and all(map(is_plain, named.values())) for named in weights):
        raise UserError(f"{path} is not a checkpoint: it contains no model weights")
    if state.get("format") != STATE_HEADER["format"] or state.get("version") != STATE_HEADER["version"]:
        raise UserError(
            f"{path} can't be read as a checkpoint: its format is {state.get('format')!r}, version "
            f"{state.get('version')!r}; expected {STATE_HEADER['format']!r}, version {STATE_HEADER['version']}"
        )
    plain = {}
    for part in ("model", "average", "optimizer"):
        if isinstance(named := state.get(part), dict):
            plain[part] = {_plain_name(str(name)): value for name, value in named.items()}
            if len(plain[part]) < len(named):
                raise UserError(f"{path} is not a valid checkpoint: it has weights twice, with and without a prefix")
    return {**state, **plain}


def checkpoints_in(folder: Path) -> list[tuple[int, Path]]:
    """Return (N, path) of every `checkpoint_step_N.bin` in `folder`, oldest first, whether it is complete or not."""
    named = [(match, path) for path in folder.glob("*.bin") if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in named if path.is_file())


def load_newest(
    folder: Path, refused: Callable[[str], None], at_most: int | None = None
) -> tuple[Path, dict[str, Any]] | None:
    """Return the path and the state of the newest complete checkpoint in `folder`, or None.

    Args:
        refused: called with the reason for each newer one that is not complete.
        at_most: consider only checkpoints with at most this many documents.
    """
    for step, path in reversed(checkpoints_in(folder)):
        if at_most is None or step <= at_most:
            try:
                return path, read_state(path)
            except UserError as error:
                refused(str(error))
    return None


def is_plain(value: object) -> bool:
    """Return whether this is a dense float tensor that stores all its elements (not sparse, not expanded)."""
    return isinstance(value, torch.Tensor) and value.is_floating_point() and _is_dense(value)


def are_counts(value: object) -> bool:
    """Return whether this is a dense (N,) int64 tensor without negative elements."""
    return (
        isinstance(value, torch.Tensor)
        and value.dtype == torch.int64
        and value.dim() == 1
        and _is_dense(value)
        and bool((value >= 0).all())
    )


def _is_dense(value: torch.Tensor) -> bool:
    return (
        value.layout == torch.strided
        and value.device.type == "cpu"
        and value.untyped_storage().nbytes() >= value.numel() * value.element_size()
    )


def _why_not_open(path: Path) -> str:
    """Return why torch must not open a file, or an empty string: torch allocates whatever sizes the file claims."""
    try:
        with zipfile.ZipFile(path) as parts:
            claimed = sum(part.file_size for part in parts.infolist())
            is_compressed = any(part.compress_type != zipfile.ZIP_STORED for part in parts.infolist())
        if claimed > path.stat().st_size:
            return f"it claims to contain {claimed:,} bytes, more than the file has"
        if is_compressed:
            return "it is compressed, and checkpoints never are"
    except OSError as error:
        return error.strerror or str(error)
    except Exception:  # noqa: BLE001  # a parser may raise anything for arbitrary bytes
        return _DAMAGED_OR_OTHER
    return ""


def _plain_name(name: str) -> str:
    """Return the parameter name without the prefixes of DistributedDataParallel and torch.compile."""
    while name.startswith(("module.", "_orig_mod.")):
        name = name.split(".", 1)[1]
    return name


def digest_path(path: Path) -> Path:
    """Return the path of the file that contains the SHA-256 of `path`, in the format of `sha256sum -c`."""
    return path.with_name(f"{path.name}.sha256")


def fault_of(path: Path) -> str:
    """Return why the file's bytes are not the saved ones, or an empty string. Without a digest nothing is checked."""
    try:
        if sha256_of_file(path) not in [line.split(" ")[0] for line in _digests(path)]:
            return "its SHA-256 differs from the one saved with it"
    except OSError:
        return ""  # there is no digest, or the file can't be read, which is noticed when it is opened
    return ""


def _digests(path: Path) -> list[str]:
    return digest_path(path).read_text(encoding="ascii", errors="replace").splitlines(keepends=True)


def _write_digests(path: Path, lines: list[str]) -> None:
    replace_file(digest_path(path), lambda file: file.writelines(line.encode() for line in lines), durable=True)
