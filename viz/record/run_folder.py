"""What `trainer/run/folders.py` leaves in the two folders of a run: its files, the mark that names it, its lock."""

import fcntl
import glob
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MARK, LOCK = ".run", ".run.lock"
KEEP_CHARTS = 500
"""Numbered pictures that stay in a folder where nothing else is said."""
# Whole names: a person's `run.db-backup` or `training_notes.png` is not a run's.
_RECORD = re.compile(
    r"run\.db(-wal|-shm|-journal)?|training_(step_\d{6,}|latest)\.png|(run|metrics_history|text_samples)\.json"
    r"|\.(training_(step_\d{6,}|latest)\.png|(run|metrics_history|text_samples)\.json)\.\d+\.part"
)
_CHECKPOINT = re.compile(r"checkpoint_step_\d+\.bin(\.sha256)?|\.checkpoint_step_\d+\.bin(\.sha256)?\.\d+\.tmp")


def mark_of(folder: Path) -> dict[str, Any]:
    """What `.run` says: `run_id`, `test`, and the two folders as they were, `viz` and `checkpoints`; {} without it."""
    try:
        content = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and "run_id" in content else {}


def record_of(path: Path) -> Path:
    """The folder of a run's record, by itself, by its `run.db`, or by the folder that `--out` named.

    Raises ValueError, one line, where there is none.
    """
    if path.name == "run.db" and path.is_file():
        return path.parent
    for folder in (path, path / "training_viz"):
        if (folder / "run.db").is_file():
            return folder
    earlier = [place for folder in (path, path / "training_viz") for place in (folder / "earlier").glob("*/run.db")]
    there = f", but there are earlier ones: python -m viz runs {path}" if earlier else ""
    raise ValueError(f"there is no run in {path} (no run.db){there}")


def checkpoints_of(record: Path, run_id: str) -> Path | None:
    """The folder of a run's checkpoints: where its mark says, or, if the tree was moved, as seen from the record."""
    mark = mark_of(record)
    if not mark:
        return None
    named = Path(str(mark.get("checkpoints")))
    beside = record.resolve() / os.path.relpath(named, str(mark.get("viz")))
    for folder in (named, Path(os.path.normpath(beside))):
        theirs = mark_of(folder)
        if theirs.get("run_id") != run_id:
            continue
        # Where only the record was copied, they are the checkpoints of the run that it was copied from.
        other = Path(str(theirs.get("viz")))
        is_taken = mark_of(other).get("run_id") == run_id and mark_of(other).get("checkpoints") == str(folder.resolve())
        if other == record.resolve() or not is_taken:
            return folder
    return None


def record_files(folder: Path) -> list[Path]:
    """What a run writes into the folder of its record, by name; `run.db` last."""
    return sorted(_named(folder, _RECORD), key=lambda path: (path.name == "run.db", path.name))


def checkpoint_files(folder: Path | None, run_id: str) -> list[Path]:
    """The checkpoints, their digests, and what a killed save has left of one; those that were set aside come first."""
    if folder is None:
        return []
    return [path for place in (*set_aside(folder, run_id), folder) for path in _named(place, _CHECKPOINT)]


def set_aside(folder: Path, run_id: str) -> list[Path]:
    """Where the newer checkpoints of a run are that went back: below its own, or beside them once it was archived."""
    places = (folder / "earlier", folder.parent)
    pattern = f"{glob.escape(run_id)}-before-going-back-to-*"
    return sorted(path for place in places for path in place.glob(pattern) if path.is_dir()) if run_id else []


def _named(folder: Path, names: re.Pattern[str]) -> list[Path]:
    return sorted(path for path in folder.glob("*") if names.fullmatch(path.name) and path.is_file())


def is_locked(folder: Path) -> bool:
    """Whether a run lives there now. Leaves nothing behind."""
    with suppress(OSError), (folder / LOCK).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """With the lock of a run, so that none begins here meanwhile. Raises ValueError if one lives here."""
    with (folder / LOCK).open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            number = file.read(20).decode("ascii", "replace") or "unknown"
            raise ValueError(f"{folder} is in use by a run (process {number}): stop it first") from error
        yield
