"""`CheckpointManager` saves and loads the states of a run; `RUN_STATE` declares the parts of a state."""

import shutil
import threading
import time
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from common.file_replacement import sync_folder
from trainer.base.checkpoint_file import are_counts, checkpoints_in, digest_path, is_plain, load_newest, write_state


class CheckpointManager:
    """A folder of checkpoints: `checkpoint_step_N.bin` is the state after N documents, `….bin.sha256` its digest.

    `save` returns as soon as the state is copied. A thread writes the copy; there is at most one at a time.
    """

    def __init__(self, folder: Path, *, keep: int = 3, keep_every: int | None = None, patience: float = 0.25) -> None:
        """
        Args:
            keep: number of newest checkpoints to keep.
            keep_every: also keep the checkpoints after every so many documents.
            patience: seconds after which `wait_for_disk` stops waiting for `before_naming`.
        """
        self.folder = folder
        self._keep = keep
        self._keep_every = keep_every
        self._patience = patience
        self._saving: threading.Thread | None = None
        self._waiting_since: float | None = None
        self._failure: BaseException | None = None

    def path(self, step: int) -> Path:
        """Return the path of the checkpoint after `step` documents."""
        return self.folder / f"checkpoint_step_{step}.bin"

    def all(self) -> list[tuple[int, Path]]:
        """See `checkpoints_in`."""
        return checkpoints_in(self.folder)

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        *,
        before_naming: Callable[[], None] = lambda: None,
        done: Callable[[Path], None] = lambda path: None,
    ) -> None:
        """Start writing the state after `step` documents. The caller may change the state when this returns.

        Waits for the previous save. Once the new checkpoint is on disk, old ones are deleted.

        Args:
            before_naming: called by the writing thread when the bytes are on disk, before the file gets its name.
            done: called by the writing thread at the end.

        Raises:
            OSError: the previous save failed.
        """
        self.wait()
        self._waiting_since = None
        copy = snapshot(state)

        def ask_before_naming() -> None:
            self._waiting_since = time.monotonic()
            before_naming()
            self._waiting_since = None

        def write() -> None:
            try:
                write_state(self.path(step), copy, ask_before_naming)
                self._delete_old()
                done(self.path(step))
            except BaseException as error:  # noqa: BLE001  # raised later, in the thread that trains
                self._failure = error

        self._saving = threading.Thread(target=write, name="checkpoint", daemon=True)
        self._saving.start()

    def wait(self) -> None:
        """Wait until nothing is being written. Raises the exception of a failed save."""
        if self._saving is not None:
            self._saving.join()
            self._saving = None
        self.raise_failure()

    @property
    def is_saving(self) -> bool:
        """Whether a save is in progress."""
        return self._saving is not None and self._saving.is_alive()

    def wait_for_disk(self) -> bool:
        """Like `wait`, but return False once `before_naming` has taken longer than `patience`."""
        while self.is_saving:
            since = self._waiting_since
            if since is not None and time.monotonic() - since > self._patience:
                return False
            time.sleep(0.005)
        self.wait()
        return True

    def raise_failure(self) -> None:
        """Raise the exception of a failed save, once."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def load_newest(
        self, refused: Callable[[str], None], at_most: int | None = None
    ) -> tuple[Path, dict[str, Any]] | None:
        """See `trainer.base.checkpoint_file.load_newest`."""
        return load_newest(self.folder, refused, at_most)

    def set_aside_newer(self, step: int, run_id: str) -> str:
        """Move the checkpoints after `step` to `earlier/`, because resuming from `step` starts another history.

        Returns a line that says what was moved; empty if there was nothing. Raises OSError if they can't be moved.
        """
        newer = [path for number, path in self.all() if number > step]
        if not newer:
            return ""
        place = self.folder / "earlier" / f"{run_id}-before-going-back-to-{step}"
        aside, times = place, 1
        while aside.exists():  # the run went back to the same step before
            times += 1
            aside = place.with_name(f"{place.name}-{times}")
        aside.mkdir(parents=True)
        for path in newer:
            for moved in (path, digest_path(path)):
                if moved.exists():
                    shutil.move(moved, aside / moved.name)
        for folder in (aside, self.folder):
            sync_folder(folder)  # before the record is rewound to the remaining checkpoint
        return f"Moved newer checkpoints to {aside}: {', '.join(path.name for path in newer)}"

    def _delete_old(self) -> None:
        for step, path in self.all()[: -self._keep]:
            if self._keep_every is None or step % self._keep_every:
                # Delete the digest last: an interrupted deletion must not leave a checkpoint without a digest.
                path.unlink(missing_ok=True)
        for digest in self.folder.glob("checkpoint_step_*.bin.sha256"):
            if not digest.with_suffix("").exists():  # just deleted, or left by an interrupted deletion
                digest.unlink()


def snapshot(value: Any) -> Any:
    """Return a copy of nested dicts and lists with every tensor copied to the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: snapshot(item) for key, item in value.items()}
    return [snapshot(item) for item in value] if isinstance(value, list | tuple) else value


_CURSOR = {"epoch": int, "shard": int, "row": int}
_PLACE = [int, int, int]
_UPDATE = {"step": int, "cursor": _PLACE, "where": str}
_AVERAGE = [float, float]
_NAMES = types.MappingProxyType({str: int})
RUN_STATE: Mapping[str, Any] = types.MappingProxyType(
    {
        "average": types.MappingProxyType({str: is_plain}),
        "config": dict,
        "display": {"first_prompt": [int]},
        "health": {"last_update": (None, _UPDATE), "failures_in_a_row": int, "roll_backs": int},
        "kernels": {"torch": str, "device": str, "cpu": str, "threads": int},
        "optimizer": types.MappingProxyType({str: types.MappingProxyType({str: is_plain})}),
        "probes": {"documents": [{"step": int, "ids": [int]}]},
        "recipe": types.MappingProxyType({str: float}),
        "run_id": str,
        "samples": {"cursor": _CURSOR, "trained": int, "held_out": int, "skipped": _NAMES, "passed_by": [_PLACE]},
        "source": {"name": str, "revision": str, "note": str, "folder": str},
        "stability": {
            "history": types.MappingProxyType({int: is_plain}),
            "counts": types.MappingProxyType({int: int}),
        },
        "step": int,
        "tally": {
            "totals": [int, int, float, float],
            "averages": [_AVERAGE, _AVERAGE, _AVERAGE, _AVERAGE],
            "first": [float],
            "last": [float],
            "texts": [[float, int, [int]]],
            "token_counts": {"counts": are_counts, "sum": float},
        },
        "tokenizer": bytes,
    }
)
"""The parts of a state. A kind is one of: a type · a dict of required keys · a read-only mapping {kind of key: kind of
value} · a list of one kind, or of a fixed number of kinds · a tuple of alternatives · a predicate."""


def misfit(value: Any, kind: Any = RUN_STATE, name: str = "") -> str:
    """Return the name of the first part of a state that is missing or invalid; empty if there is none."""
    if isinstance(kind, tuple):
        return "" if any(not misfit(value, one, name) for one in kind) else name
    if kind is None:
        return "" if value is None else name
    if isinstance(kind, type):
        fits = isinstance(value, kind) and not (isinstance(value, int) and (isinstance(value, bool) or value < 0))
        return "" if fits else name
    if callable(kind):
        return "" if kind(value) else name
    if isinstance(kind, list):
        kinds = kind if len(kind) > 1 or not isinstance(value, list) else kind * len(value)
        fits = isinstance(value, list) and len(value) == len(kinds)
        parts = [(item, one, f"{name}[]") for item, one in zip(value, kinds, strict=True)] if fits else None
    elif not isinstance(value, dict):
        parts = None
    elif isinstance(next(iter(kind)), str):
        parts = [(value.get(key), one, f"{name}.{key}".lstrip(".")) for key, one in kind.items()]
    else:
        (key_kind, one), *_ = kind.items()
        parts = [(key, key_kind, f"{name}'s keys") for key in value]
        parts += [(item, one, f"{name}.{key}") for key, item in value.items()]
    if parts is None:
        return name or "everything"
    return next((found for part in parts if (found := misfit(*part))), "")
