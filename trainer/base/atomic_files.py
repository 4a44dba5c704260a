"""File locks, file digests, and the removal of temporary files (`common.file_replacement` writes them)."""

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path


def remove_unfinished(folder: Path, names: Iterable[str]) -> None:
    """Delete temporary files that a killed `replace_file` left for files with these names (patterns).

    Call this only if no other process can be writing to `folder`.
    """
    for name in names:
        for path in folder.glob(f".{name}.*.tmp"):
            with contextlib.suppress(OSError):
                path.unlink()


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FileLock:
    """An exclusive lock on a file. It is released when the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        """Acquire the lock. Raises BlockingIOError if another process holds it; `holder` returns which.

        This tries for half a second, because a process that only checks for a live run (the page does so regularly)
        holds the lock for a moment.
        """
        self.path = path
        self._file = path.open("a+b")
        deadline = time.monotonic() + 0.5
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    self._file.close()
                    raise
                time.sleep(0.01)
        self._file.truncate(0)
        self._file.write(str(os.getpid()).encode())
        self._file.flush()

    @staticmethod
    def holder(path: Path) -> str:
        """Return the id of the process that acquired the lock last, or an empty string if the file has none."""
        with contextlib.suppress(OSError, ValueError):
            return str(int(path.read_bytes()[:20]))
        return ""

    def release(self) -> None:
        """Release the lock."""
        self._file.close()
