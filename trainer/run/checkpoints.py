"""`CheckpointManager` saves and loads the states of a run; `RUN_STATE` declares what such a state consists of."""

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

    A save returns as soon as it has a copy of the state; a thread writes it, at most one at a time.
    """

    def __init__(self, folder: Path, *, keep: int = 3, keep_every: int | None = None, patience: float = 0.25) -> None:
        """
        Args:
            keep: how many of the newest stay.
            keep_every: each after so many documents stays as well.
            patience: seconds that `wait_for_disk` gives `before_naming`.
        """
        self.folder = folder
        self._keep = keep
        self._keep_every = keep_every
        self._patience = patience
        self._saving: threading.Thread | None = None
        self._waiting_since: float | None = None
        self._failure: BaseException | None = None

    def path(self, step: int) -> Path:
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
        """Begin to write the state after `step` documents; it may change as soon as this returns.

        Waits for the save before. When the new checkpoint is safe, those that need not be kept are deleted.

        Args:
            before_naming: called by the writing thread when the bytes are on disk, before they get their name.
            done: called by it at the very end.

        Raises:
            OSError: the save before has failed.
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
            except BaseException as error:  # noqa: BLE001  # kept, and raised where the run can answer it
                self._failure = error

        self._saving = threading.Thread(target=write, name="checkpoint", daemon=True)
        self._saving.start()

    def wait(self) -> None:
        """Return once nothing is being written. Raises what the save has raised."""
        if self._saving is not None:
            self._saving.join()
            self._saving = None
        self.raise_failure()

    @property
    def is_saving(self) -> bool:
        """Whether a save is on its way."""
        return self._saving is not None and self._saving.is_alive()

    def wait_for_disk(self) -> bool:
        """`wait` for the disk, but return False once `before_naming` has taken longer than `patience`."""
        while self.is_saving:
            since = self._waiting_since
            if since is not None and time.monotonic() - since > self._patience:
                return False
            time.sleep(0.005)
        self.wait()
        return True

    def raise_failure(self) -> None:
        """Raise, once, what a save in the background has failed with."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def load_newest(
        self, refused: Callable[[str], None], at_most: int | None = None
    ) -> tuple[Path, dict[str, Any]] | None:
        """See `trainer.base.checkpoint_file.load_newest`."""
        return load_newest(self.folder, refused, at_most)

    def set_aside_newer(self, step: int, run_id: str) -> str:
        """Going on from an older checkpoint makes the newer ones another past: move them to `earlier/`, for good.

        Returns what was moved, in words; nothing where nothing was. Raises OSError where they can't be moved.
        """
        newer = [path for number, path in self.all() if number > step]
        if not newer:
            return ""
        place = self.folder / "earlier" / f"{run_id}-before-going-back-to-{step}"
        aside, times = place, 1
        while aside.exists():  # gone back to the same step before
            times += 1
            aside = place.with_name(f"{place.name}-{times}")
        aside.mkdir(parents=True)
        for path in newer:
            for moved in (path, digest_path(path)):
                if moved.exists():
                    shutil.move(moved, aside / moved.name)
        for folder in (aside, self.folder):
            sync_folder(folder)  # before anybody rewinds a record to the one that stays
        return f"What was newer moved to {aside}: {', '.join(path.name for path in newer)}"

    def _delete_old(self) -> None:
        for step, path in self.all()[: -self._keep]:
            if self._keep_every is None or step % self._keep_every:
                # The digest last: without it, half a deletion would look like a checkpoint that nobody vouches for.
                path.unlink(missing_ok=True)
        for digest in self.folder.glob("checkpoint_step_*.bin.sha256"):
            if not digest.with_suffix("").exists():  # of those just deleted, or of a deletion that was cut short
                digest.unlink()


def snapshot(value: Any) -> Any:
    """A copy of nested dicts and lists in which every tensor is one of its own, on the CPU."""
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
"""A type; a dict of what must be there; a mapping of one kind of key to one kind of value (a read-only one); a list of
one kind, or of so many; a tuple of several that will do; a function that says yes."""


def misfit(value: Any, kind: Any = RUN_STATE, name: str = "") -> str:
    """The name of the first part of a state that is missing or of another kind; nothing where all is well."""
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
