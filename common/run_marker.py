"""What `trainer` and `viz` agree on: the file that names the run of a folder, its lock, and the program that trains."""

import json
import sysconfig
from pathlib import Path
from typing import Any

MARKER, LOCK = ".run", ".run.lock"
PROJECT = Path(__file__).resolve().parent.parent
"""The folder of our packages."""
PROGRAM = "train_slimpajama.py"
INSTALLED_PROGRAM = "train-slimpajama"
"""The command that `pip install .` adds."""


def read_marker(folder: Path) -> dict[str, Any]:
    """Return the content of `.run`: `run_id`, `test`, the original folders `viz` and `checkpoints`; {} without it."""
    try:
        content = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and "run_id" in content else {}


def is_installed(project: Path = PROJECT) -> bool:
    """Whether the project was installed by pip, so that its commands work in every folder."""
    return project == Path(sysconfig.get_path("purelib"))


def training_command() -> str:
    """Return the command that starts a run, as the README has it."""
    return INSTALLED_PROGRAM if is_installed() else f"python {PROGRAM}"
