"""Where a run lives: its two folders, the lock on them, and the archive of the runs before it."""

import json
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoint import CheckpointManager, remove_unfinished
from trainer.config import TrainingConfig
from trainer.durable import FileLock, replace_file
from trainer.errors import MachineError, UserError

# What a run writes, and so what moves with it; anything else in the folders is not ours to touch.
_RECORD_FILES = ("run.db", "run.db-*", "run.json", "metrics_history.json", "text_samples.json", "training_*.png")
_CHECKPOINT_FILES = ("checkpoint_step_*.bin", "checkpoint_step_*.bin.sha256")
_MARK = ".run"
"""The file in each folder that names its run and carries the lock."""


@dataclass(frozen=True)
class Folders:
    """The folder of the record and the folder of the checkpoints that belong together."""

    viz: Path
    checkpoints: Path

    def below(self, *names: str) -> "Folders":
        return Folders(self.viz.joinpath(*names), self.checkpoints.joinpath(*names))

    def mark(self) -> dict[str, object]:
        """What is known of the run that lives here: `run_id` and `test`, or nothing."""
        for folder in (self.checkpoints, self.viz):
            try:
                content = json.loads((folder / _MARK).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if isinstance(content, dict) and "run_id" in content:
                return content
        return {}

    def files(self) -> list[tuple[Path, Path]]:
        """(folder, file) of everything that the run here has written."""
        return [
            (folder, path)
            for folder, patterns in ((self.viz, _RECORD_FILES), (self.checkpoints, _CHECKPOINT_FILES))
            for pattern in patterns
            for path in sorted(folder.glob(pattern))
        ]


class RunFolder:
    """The two folders of one run, locked while this object lives. Nothing in them is moved before `begin`."""

    def __init__(self, folders: Folders, run_id: str, *, test: bool) -> None:
        """Make the folders and lock them.

        Raises:
            UserError: a folder can't be written, or another process is writing there.
        """
        self.folders = folders
        self.viz = folders.viz
        self.checkpoints = folders.checkpoints
        self.run_id = run_id
        self._test = test
        _make(folders)
        self._locks = _lock(folders)

    def begin(self, command: str, say: Callable[[str], None]) -> None:
        """Make room for this run: an earlier one moves to `earlier/<run id>/`; `say` tells how to go on with it.

        Called when nothing can go wrong any more, so that a run that never starts moves nothing.
        """
        if self.folders.files():
            _archive(self.folders, command, say)
        _write_marks(self.folders, self.run_id, self._test)

    def release(self) -> None:
        for lock in self._locks:
            lock.release()


def new_run(root: Folders, *, test: bool) -> RunFolder:
    """Folders for a new run. A test run never moves a real one: where one lives, it takes the folders `test/` instead.

    Raises:
        UserError: a folder can't be written, or another process is writing there.
    """
    if test and root.mark().get("test") is not True and root.files():
        root = root.below("test")
    run_id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
    run = RunFolder(root, run_id, test=test)
    remove_unfinished(root.checkpoints)
    return run


def _archive(root: Folders, command: str, say: Callable[[str], None]) -> None:
    old = root.mark()
    old_id = str(old.get("run_id") or f"unnamed-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}")
    earlier = root.below("earlier", old_id)
    _make(earlier)
    # The mark goes first: after a kill in the middle the archived part knows its name, and the rest follows next time.
    _write_marks(earlier, old_id, old.get("test") is True)
    for folder, path in root.files():
        shutil.move(path, (earlier.viz if folder == root.viz else earlier.checkpoints) / path.name)
    if CheckpointManager(earlier.checkpoints).all():
        say(f"The run that was here moved to {earlier.viz}. To go on with it: {command} --resume {old_id}")
    else:
        say(f"The run that was here moved to {earlier.viz} (it has no checkpoint to resume from).")


def locate_run(root: Folders, wanted: str, *, test: bool) -> tuple[Folders, Path | None]:
    """The folders of the run that `--resume` means, and the checkpoint if one was named.

    Args:
        wanted: "" for the newest run of the folder, a run id, or the path of a checkpoint.

    Raises:
        UserError: there is no such run.
    """
    if test and root.mark().get("test") is not True and (root.below("test").viz / _MARK).exists():
        root = root.below("test")
    if not wanted:
        return root, None
    if root.mark().get("run_id") == wanted:
        return root, None
    for place in (root.below("earlier", wanted), root.below("test", "earlier", wanted)):
        if place.mark().get("run_id") == wanted:
            return place, None
    if root.below("test").mark().get("run_id") == wanted:
        return root.below("test"), None
    path = Path(wanted)
    if path.is_file():
        mark = Folders(path.parent, path.parent).mark()
        viz = Path(str(mark["viz"])) if "viz" in mark else root.viz
        return Folders(viz if viz.is_dir() else root.viz, path.parent), path
    known = [place.name for place in sorted((root.checkpoints / "earlier").glob("*/"))]
    here = f"runs here: {', '.join(known)}" if known else f"no earlier runs in {root.checkpoints}"
    raise UserError(f"--resume {wanted}: no run of that id and no such checkpoint file ({here})")


def resume_run(folders: Folders, chosen: Path | None, *, say: Callable[[str], None]) -> tuple[RunFolder, Path]:
    """Lock the run's folders and choose the checkpoint to go on from; one that is not whole is named and passed by.

    Raises:
        UserError: nothing to resume, or another process is writing there.
    """
    if not folders.checkpoints.is_dir() or not CheckpointManager(folders.checkpoints).all():
        raise UserError(f"nothing to resume: no checkpoint in {folders.checkpoints}. Without --resume a new run starts")
    mark = folders.mark()
    run = RunFolder(folders, str(mark.get("run_id", "unnamed")), test=mark.get("test") is True)
    remove_unfinished(folders.checkpoints)
    manager = CheckpointManager(folders.checkpoints)
    path = chosen or manager.newest_valid(lambda bad, why: say(f"{bad} is passed by: {why}"))
    if path is None:
        raise UserError(f"nothing to resume: no checkpoint in {folders.checkpoints} is whole")
    return run, path


def set_aside_newer(folders: RunFolder, step: int, say: Callable[[str], None]) -> None:
    """Going on from an older checkpoint makes the newer ones another history: they move to `earlier/`."""
    newer = [path for number, path in CheckpointManager(folders.checkpoints).all() if number > step]
    if not newer:
        return
    aside = folders.checkpoints / "earlier" / f"{folders.run_id}-before-going-back-to-{step}"
    aside.mkdir(parents=True, exist_ok=True)
    for path in newer:
        shutil.move(path, aside / path.name)
        digest = path.with_name(f"{path.name}.sha256")
        if digest.exists():
            shutil.move(digest, aside / digest.name)
    say(f"{len(newer)} newer checkpoints moved to {aside}")


def bytes_needed(parameters: int, config: TrainingConfig, first_step: int) -> int:
    """What the rest of a run will write, in bytes.

    12 bytes a weight in each checkpoint (fp32 weight and two moments); 8 bytes a token and 200 a step in the store and
    the JSON files, 200 kB a chart: measured upper bounds (`docs/decisions.md`).
    """
    steps = max(config.num_steps - first_step, 0)
    checkpoints = (steps // config.checkpoint_interval + 1) if config.checkpoint else 0
    charts = steps // config.viz_interval + 1
    return checkpoints * 12 * parameters + steps * (8 * config.max_seq_length + 200) + charts * 200_000


def check_disk(folder: Path, needed: int) -> int:
    """The bytes that are free where `folder` is. Raises `MachineError` when they are fewer than `needed`."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise MachineError(
            f"{folder}: this run will write about {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: "
            "make room, choose another --out, fewer --steps, a larger --checkpoint-interval or --viz-interval"
        )
    return free


def _make(folders: Folders) -> None:
    for folder in (folders.viz, folders.checkpoints):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".{secrets.token_hex(4)}.tmp"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(f"{folder} can't be written ({error.strerror}): choose another with --out") from error


def _lock(folders: Folders) -> list[FileLock]:
    locks: list[FileLock] = []
    for folder in dict.fromkeys((folders.viz.resolve(), folders.checkpoints.resolve())):
        try:
            locks.append(FileLock(folder / f"{_MARK}.lock"))
        except BlockingIOError as error:
            for lock in locks:
                lock.release()
            holder = folders.mark()
            raise UserError(
                f"{folder} is in use by run {holder.get('run_id', '?')}: wait for it, stop it, or choose another --out"
            ) from error
    return locks


def _write_marks(folders: Folders, run_id: str, test: bool) -> None:
    content = json.dumps({"run_id": run_id, "test": test, "viz": str(folders.viz.resolve())}).encode()
    for folder in (folders.viz, folders.checkpoints):
        replace_file(folder / _MARK, lambda file: (file.write(content), None)[1])
