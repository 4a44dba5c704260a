"""Files that survive: replaced whole or not at all, on disk before they have their name, and locked while in use."""

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO


def replace_file(
    path: Path, write: Callable[[BinaryIO], None], before_naming: Callable[[Path], None] | None = None
) -> None:
    """Give `path` new content in one step: a reader, a kill or a power cut finds the old file or the new one, whole.

    Args:
        path: the file; its folder must exist.
        write: writes the content to the open temporary file beside it.
        before_naming: called with the temporary file once its bytes are on disk, before it gets its name.

    Raises:
        OSError: the content could not be written; `path` is as before and the temporary file is gone.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if before_naming is not None:
            before_naming(aside)
        aside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def remove_unfinished(folder: Path, names: Iterable[str]) -> None:
    """Delete what `replace_file` left of files of these names (patterns) when it was killed.

    Only for who may be sure that nobody else writes there.
    """
    for name in names:
        for path in folder.glob(f".{name}.*.tmp"):
            with contextlib.suppress(OSError):
                path.unlink()


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable; a rename is only a promise until its folder is on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FileLock:
    """An exclusive lock on a file that ends with the process, however it ends."""

    def __init__(self, path: Path) -> None:
        """Take the lock. Raises BlockingIOError when another process holds it; `holder` tells which.

        Who only looks if a run lives here (the page does, again and again) holds it for an instant: so it is tried for
        half a second.
        """
        self.path = path
        self._file = path.open("a+b")
        until = time.monotonic() + 0.5
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    self._file.close()
                    raise
                time.sleep(0.01)
        self._file.truncate(0)
        self._file.write(str(os.getpid()).encode())
        self._file.flush()

    @staticmethod
    def holder(path: Path) -> str:
        """The number of the process that took the lock last; nothing where the file does not say."""
        with contextlib.suppress(OSError, ValueError):
            return str(int(path.read_bytes()[:20]))
        return ""

    def release(self) -> None:
        self._file.close()
