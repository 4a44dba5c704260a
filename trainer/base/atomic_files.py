"""Files that survive: replaced whole or not at all, on disk before they have their name, and locked while in use."""

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path


def remove_unfinished(folder: Path, names: Iterable[str]) -> None:
    """Delete what `replace_file` left of files of these names (patterns) when it was killed.

    Only for who may be sure that nobody else writes there.
    """
    for name in names:
        for path in folder.glob(f".{name}.*.tmp"):
            with contextlib.suppress(OSError):
                path.unlink()


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
