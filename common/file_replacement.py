"""Replace a file in one step, so that readers never see it incomplete."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def temporary_name(name: str, process: int | str) -> str:
    """Return the temporary name that `replace_file` uses: hidden, and matched by no pattern for finished files."""
    return f".{name}.{process}.tmp"


def replace_file(
    path: Path,
    write: Callable[[BinaryIO], object],
    *,
    durable: bool,
    before_naming: Callable[[Path], None] | None = None,
) -> None:
    """Give `path` new content in one step: readers, kills and power cuts find the old file or the new one, complete.

    Args:
        path: the file; its folder must exist.
        write: writes the content to the open temporary file next to it.
        durable: sync the file and its folder, so that the content survives a power cut. Use False for a file that can
            be rebuilt from the store.
        before_naming: called with the temporary file before it gets its name, once its bytes are on disk.

    Raises:
        OSError: the content could not be written. The error names `path`, which is unchanged; the temporary file is
            removed.
    """
    temporary = path.with_name(temporary_name(path.name, os.getpid()))
    try:
        with temporary.open("wb") as file:
            write(file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if before_naming is not None:
            before_naming(temporary)
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error  # not the temporary name
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: a rename survives a power cut only once its folder is on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
