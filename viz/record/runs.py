"""The runs in a folder: their files and state, the command that resumes one, and deletion."""

import fcntl
import glob
import os
import re
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.run_marker import INSTALLED_PROGRAM, LOCK, MARKER, PROGRAM, PROJECT, is_installed, read_marker
from viz.record.reader import StoreReader

KEEP_CHARTS = 500
"""Numbered charts that a run keeps by default."""
RECENT_DOCUMENTS = 200
# `.part` is from versions before 0.6. Full names: `run.db-backup` and `training_notes.png` are files of the user.
_RECORD = re.compile(
    r"run\.db(-wal|-shm|-journal)?|training_(step_\d{6,}|latest)\.png|(run|metrics_history|text_samples)\.json"
    r"|\.(training_(step_\d{6,}|latest)\.png|(run|metrics_history|text_samples)\.json)\.\d+\.(tmp|part)"
)
_CHECKPOINT = re.compile(r"checkpoint_step_\d+\.bin(\.sha256)?|\.checkpoint_step_\d+\.bin(\.sha256)?\.\d+\.tmp")


def record_of(path: Path) -> Path:
    """Return the folder of a run's record, given that folder, its `run.db`, or the folder of `--out`.

    Raises ValueError if there is no run.
    """
    if path.name == "run.db" and path.is_file():
        return path.parent
    for folder in (path, path / "training_viz"):
        if (folder / "run.db").is_file():
            return folder
    earlier = [place for folder in (path, path / "training_viz") for place in (folder / "earlier").glob("*/run.db")]
    there = f", only earlier ones: python -m viz runs {path} lists them" if earlier else ""
    raise ValueError(f"there is no run in {path} (no run.db){there}")


def checkpoints_of(record: Path, run_id: str) -> Path | None:
    """Return the folder of a run's checkpoints: the one in its marker or, if both moved, relative to the record."""
    marker = read_marker(record)
    if not marker:
        return None
    named = Path(str(marker.get("checkpoints")))
    beside = record.resolve() / os.path.relpath(named, str(marker.get("viz")))
    for folder in (named, Path(os.path.normpath(beside))):
        theirs = read_marker(folder)
        if theirs.get("run_id") != run_id:
            continue
        # If only the record was copied, these are the checkpoints of the original.
        other = Path(str(theirs.get("viz")))
        claims = read_marker(other)
        is_taken = claims.get("run_id") == run_id and claims.get("checkpoints") == str(folder.resolve())
        if other == record.resolve() or not is_taken:
            return folder
    return None


def record_files(folder: Path) -> list[Path]:
    """Return the files of a run in the folder of its record, by name; `run.db` last."""
    return sorted(_named(folder, _RECORD), key=lambda path: (path.name == "run.db", path.name))


def checkpoint_files(folder: Path | None, run_id: str) -> list[Path]:
    """Return checkpoints, their digests and leftovers of killed saves; those that were set aside first."""
    if folder is None:
        return []
    return [path for place in (*set_aside(folder, run_id), folder) for path in _named(place, _CHECKPOINT)]


def set_aside(folder: Path, run_id: str) -> list[Path]:
    """Return the folders with the newer checkpoints of a run that was resumed from an older one.

    They are below its checkpoints or, once it is archived, next to them.
    """
    places = (folder / "earlier", folder.parent)
    pattern = f"{glob.escape(run_id)}-before-going-back-to-*"
    return sorted(path for place in places for path in place.glob(pattern) if path.is_dir()) if run_id else []


def _named(folder: Path, names: re.Pattern[str]) -> list[Path]:
    return sorted(path for path in folder.glob("*") if names.fullmatch(path.name) and path.is_file())


def is_locked(folder: Path) -> bool:
    """Whether a run uses the folder now. Creates no file."""
    with suppress(OSError), (folder / LOCK).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock the folder, so that no run can start in it. Raises ValueError if a run uses it."""
    with (folder / LOCK).open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            number = file.read(20).decode("ascii", "replace") or "unknown"
            raise ValueError(f"{folder} is in use by a run (process {number}): stop the run first") from error
        yield


@dataclass(frozen=True)
class FoundRun:
    """A run as it was found. Times are UNIX seconds; unknown values are None or ''."""

    run_id: str
    record: Path
    """The folder of `run.db`."""
    checkpoints: Path | None
    """The folder of its checkpoints; None if there is none of this run."""
    is_test: bool
    is_running: bool
    bytes_on_disk: int
    """Of the record and the checkpoints."""
    newest_checkpoint: int | None
    """Number of documents before it."""
    started: float | None = None
    outcome: str = ""
    source: str = ""
    model: str = ""
    documents: int = 0
    steps_asked: int | None = None
    loss: float | None = None
    """Mean of the last `RECENT_DOCUMENTS` documents, nats per token."""
    problem: str = ""
    """Why the record can't be read, in one line."""
    resume_command: str | None = None
    """To be run in the current folder."""
    why_not: str = ""
    """Why there is no such command."""


def find_runs(viz: Path, program: Path = PROJECT / PROGRAM) -> list[FoundRun]:
    """Return the runs in a folder like `training_viz`, in its `test/`, and in `earlier/` of both; newest first.

    `program`: the script in the commands that resume them.
    """
    homes = (viz, viz / "test")
    places = [place for home in homes for place in (home, *sorted((home / "earlier").glob("*/")))]
    found = [_look_at(viz, place, program) for place in places if (place / "run.db").exists() or read_marker(place)]
    return sorted(found, key=lambda run: run.started or 0, reverse=True)


def _look_at(viz: Path, record: Path, program: Path) -> FoundRun:
    marker, known = read_marker(record), _read_record(record / "run.db")
    run_id = known.pop("run_id", "") or str(marker.get("run_id", ""))
    checkpoints = checkpoints_of(record, run_id)
    saved = checkpoint_files(checkpoints, run_id)
    numbers = [
        int(path.stem.rpartition("_")[2]) for path in saved if path.suffix == ".bin" and path.parent == checkpoints
    ]
    newest = max(numbers, default=None)
    is_running = is_locked(record) or (checkpoints is not None and is_locked(checkpoints))
    is_current = known.pop("is_current", True)
    command, why_not = None, ""
    if is_running:
        why_not = "it is running"
    elif known.get("problem") and (record / "run.db").exists():
        why_not = "its record can't be read"
    elif not is_current:
        why_not = "its record is of an earlier version"
    elif checkpoints is None or newest is None:
        why_not = "there is no checkpoint"
    else:
        command = _resume_command(program, viz, record, checkpoints, run_id)
        if newest >= (known.get("steps_asked") or newest + 1):
            command += f" --steps {2 * newest}"
        elif known.get("outcome") == "documents ended":
            command += " --repeat"
    return FoundRun(
        run_id,
        record,
        checkpoints,
        is_test=marker.get("test") is True if marker else "test" in record.relative_to(viz).parts,
        is_running=is_running,
        bytes_on_disk=size_of([*record_files(record), *saved]),
        newest_checkpoint=newest,
        resume_command=command,
        why_not=why_not,
        **known,
    )


def _read_record(path: Path) -> dict[str, Any]:
    """Return fields of `FoundRun` and whether the store `is_current`; or only its `problem`."""
    try:
        with StoreReader(path) as store:
            about, documents = store.run(), store.documents_trained()
            losses = store.columns(documents - RECENT_DOCUMENTS)["loss"]
            is_current = store.is_current
        steps, losses = about["config"].get("num_steps"), losses[np.isfinite(losses)]
        return {
            **{name: str(about[name] or "") for name in ("run_id", "source", "model", "outcome")},
            "started": None if about["started"] is None else float(about["started"]),
            "documents": documents,
            "steps_asked": None if steps is None else int(steps),
            "loss": float(losses.mean()) if losses.size else None,
            "is_current": is_current,
        }
    except FileNotFoundError:
        return {"problem": f"{path} is missing"}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, sqlite3.Error) as error:
        text = str(error)  # in a damaged or foreign file, anything may be missing or have another type
        return {"problem": text if str(path) in text else f"{path} can't be read as a run store: {text}"}


def size_of(paths: list[Path]) -> int:
    """Return the bytes of the files that still exist."""
    total = 0
    for path in paths:
        with suppress(FileNotFoundError):  # a running run replaces and deletes them
            total += path.stat().st_size
    return total


def _resume_command(program: Path, viz: Path, record: Path, checkpoints: Path, run_id: str) -> str:
    """Name the run by id and the folders above `earlier/` and `test/`, if both are at the same place below them."""
    place = record.relative_to(viz).parts
    homes = [record.resolve(), checkpoints]
    if place and checkpoints.parts[-len(place) :] == place:
        homes = [viz.resolve(), checkpoints.parents[len(place) - 1]]
    out = homes[0].parent
    if homes == [out / "training_viz", out / "checkpoints"]:
        flags = "" if out == Path.cwd() else f" --out {shown_path(out)}"
    else:
        named = zip(("--viz-dir", "--checkpoint-dir"), ("training_viz", "checkpoints"), homes, strict=True)
        flags = "".join(f" {flag} {shown_path(home)}" for flag, usual, home in named if home != Path(usual).resolve())
    start = INSTALLED_PROGRAM if is_installed(program.parent) else f"python {_quote(os.path.relpath(program))}"
    return f"{start}{flags} --resume {_quote(run_id)}"


def shown_path(path: Path) -> str:
    """Return a path as a word for a shell, relative to the current folder if it is below it."""
    here = Path.cwd()
    return _quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def _quote(word: str) -> str:
    """Quote for a shell; control characters as `$'…'` of bash and zsh."""
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + "".join(f"\\x{byte:02x}" for byte in os.fsencode(word)) + "'"


def delete_run(run: FoundRun) -> None:
    """Delete the files of a run, and its folders under `earlier/` and `test/` if they are then empty.

    Raises:
        ValueError: the run is running or was replaced: nothing is deleted.
        OSError: a file can't be deleted. The record and its marker are last, so that `find_runs` still lists the run.
    """
    halves = [folder for folder in (run.checkpoints, run.record) if folder is not None]
    aside = [] if run.checkpoints is None else set_aside(run.checkpoints, run.run_id)
    _refuse_another(run)
    with ExitStack() as locks:
        for folder in dict.fromkeys(folder.resolve() for folder in halves):
            locks.enter_context(held(folder))
        _refuse_another(run)
        markers = [folder / name for folder in halves for name in (MARKER, LOCK)]
        for path in [*checkpoint_files(run.checkpoints, run.run_id), *record_files(run.record), *markers]:
            path.unlink(missing_ok=True)
    for folder in [*aside, *halves]:
        while folder.parent.name == "earlier" or folder.name in ("earlier", "test"):
            try:
                folder.rmdir()
            except OSError:  # it contains a file of the user, or another run
                break
            folder = folder.parent


def _refuse_another(run: FoundRun) -> None:
    """Raise ValueError if the run was moved or replaced since it was found."""
    now = _read_record(run.record / "run.db").get("run_id") or str(read_marker(run.record).get("run_id", ""))
    if not run.run_id or now != run.run_id:
        found = f"contains run {now} now, not {run.run_id}" if now else "contains no run with an id: delete it by hand"
        raise ValueError(f"{run.record} {found}")
    if run.checkpoints != checkpoints_of(run.record, run.run_id):
        raise ValueError(f"the checkpoints of run {run.run_id} are no longer in {run.checkpoints}: list the runs again")
