"""The two folders of a run, their locks, and the archive of earlier runs."""

import errno
import json
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.file_replacement import replace_file
from common.formatting import format_bytes
from common.run_marker import LOCK, MARKER, read_marker
from trainer.base.atomic_files import FileLock, remove_unfinished
from trainer.base.checkpoint_file import read_state
from trainer.config import TrainingConfig
from trainer.errors import MachineError, UserError
from trainer.run.checkpoints import CheckpointManager

# The files that a run writes and that move with it. Other files in its folders are left alone.
_RECORD_FILES = ("run.db", "run.db-*", "run.json", "metrics_history.json", "text_samples.json", "training_*.png")
_CHECKPOINT_FILES = ("checkpoint_step_*.bin", "checkpoint_step_*.bin.sha256")
_MACHINE_FAILS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


@dataclass(frozen=True)
class Folders:
    """The record folder and the checkpoint folder of one run."""

    viz: Path
    checkpoints: Path

    def below(self, *names: str) -> "Folders":
        return Folders(self.viz.joinpath(*names), self.checkpoints.joinpath(*names))

    def is_test(self) -> bool:
        """Whether both folders belong to a test run, and neither to a real one."""
        markers = [marker for folder in (self.viz, self.checkpoints) if (marker := read_marker(folder))]
        return bool(markers) and all(marker.get("test") is True for marker in markers)

    def has_files(self) -> bool:
        return bool(_files(self.viz, _RECORD_FILES) or _files(self.checkpoints, _CHECKPOINT_FILES))

    def paired(self) -> "Folders":
        """Return these checkpoints with the record of the same run, which may be elsewhere."""
        marker = read_marker(self.checkpoints)
        if marker and read_marker(self.viz).get("run_id") != marker["run_id"]:
            elsewhere = Path(str(marker.get("viz")))
            theirs = read_marker(elsewhere)
            # If these checkpoints are a copy, that record belongs to the originals.
            is_theirs = str(theirs.get("checkpoints")) == str(self.checkpoints.resolve())
            if theirs.get("run_id") == marker["run_id"] and is_theirs:
                return Folders(elsewhere, self.checkpoints)
        return self


class RunFolder:
    """The two folders of one run, locked as long as this object exists. Nothing in them moves before `begin`."""

    def __init__(self, folders: Folders, run_id: str, *, test: bool) -> None:
        """Create and lock the folders.

        Raises:
            UserError: a folder can't be written, or another process uses it.
        """
        self.viz = folders.viz
        self.checkpoints = folders.checkpoints
        self.run_id = run_id
        self._folders = folders
        self._test = test
        for folder in (folders.viz, folders.checkpoints):
            _make(folder)
        self._locks = _lock(folders)
        for folder in (folders.viz, folders.checkpoints):
            remove_unfinished(folder, (*_CHECKPOINT_FILES, MARKER))

    def begin(self, command: str, say: Callable[[str], None]) -> None:
        """Move an earlier run to `earlier/<run id>/`, print how to resume it with `say`, and mark the folders.

        Call it when the run is ready to start, so that a run that fails to start moves nothing.
        """
        _archive(self._folders, command, say)
        _write_marker(self.viz, self.run_id, self._test, self._folders)
        _write_marker(self.checkpoints, self.run_id, self._test, self._folders)

    def release(self) -> None:
        for lock in self._locks:
            lock.release()


def new_run(root: Folders, *, test: bool) -> RunFolder:
    """Return the folders of a new run. A test run never moves a real one; it uses the folders `test/` instead.

    Raises:
        UserError: a folder can't be written, or another process uses it.
    """
    if test and not root.is_test() and root.has_files():
        root = root.below("test")
    run_id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
    return RunFolder(root, run_id, test=test)


def _archive(root: Folders, command: str, say: Callable[[str], None]) -> None:
    """Move the files of earlier runs out of the two folders. Each folder may belong to a different run."""
    halves = {"viz": (root.viz, _RECORD_FILES), "checkpoints": (root.checkpoints, _CHECKPOINT_FILES)}
    moving: dict[str, list[str]] = {}
    for name, (folder, patterns) in halves.items():
        if _files(folder, patterns):
            unnamed = f"unnamed-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
            moving.setdefault(str(read_marker(folder).get("run_id", unnamed)), []).append(name)
    for run_id, names in moving.items():
        marker = read_marker(halves[names[0]][0])
        place = {name: Path(str(marker.get(name, folder))) for name, (folder, _) in halves.items()}
        place |= {name: halves[name][0] / "earlier" / run_id for name in names}
        earlier = Folders(place["viz"], place["checkpoints"])
        for name in names:
            _make(place[name])
        # Write the markers first: after a kill, the moved files can be identified, and the next run moves the rest.
        # A folder that stays in place records where the other one is now.
        for folder in place.values():
            if folder.name == run_id or read_marker(folder).get("run_id") == run_id:
                _write_marker(folder, run_id, marker.get("test") is True, earlier)
        for name in names:
            for path in _files(*halves[name]):
                shutil.move(path, place[name] / path.name)
        where = " and ".join(dict.fromkeys(str(place[name]) for name in names))
        if CheckpointManager(earlier.checkpoints).all():
            say(f"The previous run moved to {where}. Resume it: {command} --resume {run_id}")
        else:
            say(f"The previous run moved to {where}. It has no checkpoint to resume from")


def locate_run(root: Folders, wanted: str, *, test: bool) -> tuple[Folders, Path | None]:
    """Return the folders of the run that `--resume` names, and the checkpoint if it names one.

    Args:
        wanted: "" for the newest run of the folder, a run id, or the path of a checkpoint.
        test: find test runs only.

    Raises:
        UserError: there is no such run.
    """
    if test and not root.is_test():
        root = root.below("test")
        if not root.is_test():
            raise UserError(f"nothing to resume: there is no test run in {root.viz.parent}")
    if not wanted:
        return root.paired(), None
    for place in (root, root.below("earlier", wanted), root.below("test"), root.below("test", "earlier", wanted)):
        if read_marker(place.checkpoints).get("run_id") == wanted:
            return place.paired(), None
        marker = read_marker(place.viz)
        if marker.get("run_id") == wanted:
            return Folders(place.viz, Path(str(marker.get("checkpoints", place.checkpoints)))), None
    path = Path(wanted)
    if path.is_file():
        return Folders(root.viz, path.parent).paired(), path
    places = (root.checkpoints, *sorted((root.checkpoints / "earlier").glob("*/")), root.below("test").checkpoints)
    known = [str(marker["run_id"]) for place in places if (marker := read_marker(place))]
    here = f"runs here: {', '.join(known)}" if known else f"no runs in {root.checkpoints}"
    raise UserError(f"--resume {wanted}: no run with this id and no checkpoint file at this path ({here})")


def resume_run(
    folders: Folders, chosen: Path | None, *, refused: Callable[[str], None]
) -> tuple[RunFolder, Path, dict[str, Any]]:
    """Lock the folders of the run, choose the checkpoint to resume from, and read it.

    Args:
        chosen: the checkpoint that the user named; None: the newest valid one.
        refused: called with the reason for each newer checkpoint that is not valid.

    Raises:
        UserError: there is nothing to resume, `chosen` is damaged, or another process uses the folders.
    """
    manager = CheckpointManager(folders.checkpoints)
    nothing = f"nothing to resume: no checkpoint in {folders.checkpoints}"
    if not folders.checkpoints.is_dir():
        raise UserError(f"{nothing}. Omit --resume to start a new run")
    marker = read_marker(folders.checkpoints)
    run = RunFolder(folders, str(marker.get("run_id", "unnamed")), test=marker.get("test") is True)
    try:
        found = (chosen, read_state(chosen)) if chosen else manager.load_newest(refused)
        if found is None:
            raise UserError(f"{nothing} is valid" if manager.all() else f"{nothing}. Omit --resume to start a new run")
    except BaseException:
        run.release()
        raise
    return run, *found


def bytes_needed(config: TrainingConfig, parameters: int, run: RunFolder, first: int) -> dict[Path, int]:
    """Return folder → the most bytes that the run writes there from step `first` on."""
    steps = max(config.num_steps - first, 0)
    charts = min(steps // config.viz_interval, config.keep_charts) + 1
    record = record_bytes(steps, config.max_seq_length, charts, config.keep_documents)
    written = steps // config.checkpoint_interval + 1 if config.checkpoint else 0
    kept_for_good = steps // config.keep_every if config.keep_every else 0
    count = min(written, config.keep_checkpoints + 1 + kept_for_good)  # the oldest is deleted after the newest is saved
    checkpoints = checkpoint_bytes(parameters, count)
    if run.viz == run.checkpoints:
        return {run.viz: record + checkpoints}
    return {run.viz: record, run.checkpoints: checkpoints}


def checkpoint_bytes(parameters: int, count: int) -> int:
    """Return the most bytes of `count` checkpoints: 16 per weight (fp32 weight, its average, two moments)."""
    return count * 16 * parameters


def record_bytes(steps: int, max_seq_length: int, charts: int, keep_documents: int | None = None) -> int:
    """Return the most bytes of a record (measured, `docs/decisions.md`): 8 per token, 200 per step, 200 kB per chart.

    Of the steps before the last `keep_documents` and one block of 1,000, one in fifty keeps its tokens; the others take
    500 bytes.
    """
    whole = steps if keep_documents is None else min(steps, keep_documents + 1000)
    emptied = steps - whole
    tokens = 8 * max_seq_length * (whole + emptied // 50)
    return tokens + 200 * whole + 500 * emptied + charts * 200_000


def check_disk(needed: Mapping[Path, int]) -> None:
    """Raise `MachineError` if the disk of a folder has fewer free bytes than the run needs.

    Args:
        needed: existing folder → bytes; folders on the same disk are added up.
    """
    for device in {folder.stat().st_dev for folder in needed}:
        folders = [folder for folder in needed if folder.stat().st_dev == device]
        total, free = sum(needed[folder] for folder in folders), shutil.disk_usage(folders[0]).free
        if free < total:
            raise MachineError(
                f"{' and '.join(map(str, folders))}: the run needs up to {format_bytes(total)}, but only "
                f"{format_bytes(free)} are free. Free some space, choose another --out, or lower --keep-checkpoints"
            )


def _files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return [path for pattern in patterns for path in sorted(folder.glob(pattern))]


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{MARKER}.{secrets.token_hex(4)}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        problem = f"{folder} can't be written ({error.strerror}): choose another folder with --out"
        raise (MachineError if error.errno in _MACHINE_FAILS else UserError)(problem) from error


def _lock(folders: Folders) -> list[FileLock]:
    locks: list[FileLock] = []
    for folder in dict.fromkeys((folders.viz.resolve(), folders.checkpoints.resolve())):
        try:
            locks.append(FileLock(folder / LOCK))
        except BlockingIOError as error:
            for lock in locks:
                lock.release()
            run_id = read_marker(folder).get("run_id")
            holder = f"run {run_id}" if run_id else "a run that is starting"
            number = FileLock.holder(folder / LOCK)
            raise UserError(
                f"{folder} is in use by {holder} (process {number or 'unknown'}): wait for it, stop it, or choose "
                "another --out"
            ) from error
    return locks


def _write_marker(folder: Path, run_id: str, test: bool, folders: Folders) -> None:
    where = {"viz": str(folders.viz.resolve()), "checkpoints": str(folders.checkpoints.resolve())}
    content = json.dumps({"run_id": run_id, "test": test, **where}).encode()
    replace_file(folder / MARKER, lambda file: file.write(content), durable=True)
