"""`CheckpointManager`: whole states of a run to disk and back. Knows nothing of what is in them."""

import contextlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trainer.state_file import fault_of, write_state

_NAME = re.compile(r"checkpoint_step_(\d+)\.bin")


class CheckpointManager:
    """A folder of checkpoints: `checkpoint_step_N.bin` is the state after N documents, `….bin.sha256` its digest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        return self.folder / f"checkpoint_step_{step}.bin"

    def all(self) -> list[tuple[int, Path]]:
        """(N, path) of every checkpoint by name, oldest first; whether they are whole is not looked at."""
        found = [(int(match[1]), path) for path in self.folder.glob("*.bin") if (match := _NAME.fullmatch(path.name))]
        return sorted(found)

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write the state after `step` documents. Raises OSError when it can't be; what was there is untouched."""
        path = self.path(step)
        write_state(path, state)
        return path

    def newest_valid(self, refused: Callable[[Path, str], None]) -> Path | None:
        """The newest checkpoint that is whole, or None. `refused` is told of each newer one that is not, and why."""
        for _, path in reversed(self.all()):
            fault = fault_of(path)
            if not fault:
                return path
            refused(path, fault)
        return None


def remove_unfinished(folder: Path) -> None:
    """Delete what a killed save left behind."""
    for path in folder.glob(".checkpoint_step_*.tmp"):
        with contextlib.suppress(OSError):
            path.unlink()
